"""Folds batch norms into the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from typing_extensions import Self, override

from ..models.decode_heads.join_conv import JoinConv2d


def fold_batch_norms(model: nn.Module, run: Callable[[], Any]) -> Any:
    """Fold every batch norm that can be folded into the convolution before it, in place.

    What is before what is observed while the model runs, for neither names nor the order of modules
    tell. A pair is folded if the convolution runs once, with its own weight and bias, the batch
    norm runs once, by running statistics, and nothing but the batch norm reads the convolution's
    result. All else stays, such as batch norms behind a sum, a transposed convolution or a linear
    layer, and modules that are shared, reparametrised or have hooks.

    Args:
        model: Model in evaluation mode.
        run: Runs it.

    Returns:
        What ``run`` returned, before anything was folded.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8)).eval()
        >>> image = torch.rand(1, 3, 4, 4)
        >>> before = fold_batch_norms(model, lambda: model(image))
        >>> model[1], bool(torch.allclose(model(image), before, rtol=1e-4))
        (Identity(), True)
    """
    observer = _Observer(model)
    with torch.no_grad(), observer:
        result = run()
    for tensor in _tensors(result):
        _readers(tensor).append(None)
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    rests = {}
    for conv, readers in observer.results:
        norm = readers[0] if len(readers) == 1 else None
        rest = norm and _rest(norm)
        if (
            norm is not None
            and rest is not None
            and owners[id(conv.weight)] == 1
            and observer.uses[id(conv.weight)] == observer.uses[id(norm.running_mean)] == 1
            and not any((m._forward_hooks or m._forward_pre_hooks) for m in (conv, norm))
        ):
            _fold(conv, norm)
            rests[norm] = rest.eval()
    replace_modules(model, rests)
    return result


def replace_modules(model: nn.Module, new: Mapping[Any, nn.Module]) -> None:
    """Put modules in place of others, wherever in a model these are."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                setattr(module, name, new[child])


class _Observer(TorchDispatchMode):
    """Notes the results of convolutions and what reads each: a batch norm, or None for all else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        #: Convolutions with their results' readers; a result may be freed, but not its readers.
        self.results: list[tuple[_ConvNd, list[_BatchNorm | None]]] = []
        #: How often each weight and running mean was read, by its id.
        self.uses: Counter[int] = Counter()
        modules = list(model.modules())
        # Not m.weight, which is computed anew where it is reparametrised.
        self._convs = {
            id(m._parameters.get('weight')): m for m in modules if isinstance(m, _ConvNd)
        }
        self._norms = {id(m.running_mean): m for m in modules if isinstance(m, _BatchNorm)}
        #: These take several steps to their result, with parts of their weight.
        self._joining = [m for m in modules if isinstance(m, JoinConv2d)]
        self._hooks: list[Any] = []

    @override
    def __enter__(self) -> Self:
        self._hooks = [m.register_forward_hook(self._note) for m in self._joining]
        return super().__enter__()

    @override
    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _note(self, conv: _ConvNd, _: Any, result: Any) -> None:
        result.read_by = []
        self.results.append((conv, result.read_by))

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = list(_tensors((args, kwargs)))
        norm = next((self._norms[id(x)] for x in read if id(x) in self._norms), None)
        for tensor in read:
            _readers(tensor).append(norm)
            self.uses[id(tensor)] += id(tensor) in self._convs or id(tensor) in self._norms
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and not args[6]:  # not transposed
            conv = self._convs.get(id(args[1]))
            if conv is not None and conv.bias is args[2]:
                self._note(conv, args, result)
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor))


def _readers(tensor: Tensor) -> list[_BatchNorm | None]:
    """What has read a result of a convolution; of another tensor nothing is kept."""
    return getattr(tensor, 'read_by', [])


def _rest(norm: _BatchNorm) -> nn.Module | None:
    """What a batch norm does besides its affine; None if that is unknown."""
    if type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return nn.Identity()
    behind: list[Any] = [getattr(norm, 'drop', None), getattr(norm, 'act', None)]
    if type(norm).__module__.startswith('timm.') and None not in behind:  # BatchNormAct2d
        return nn.Sequential(*behind)
    return None


def _fold(conv: _ConvNd, norm: _BatchNorm) -> None:
    precise = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
    fused = fuse_conv_bn_eval(*precise).to(conv.weight.dtype)
    conv.weight, conv.bias = fused.weight, fused.bias
