"""Learning rates that fall from the head to the image, for each network of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from typing_extensions import override

from ..errors import ConfigError
from ..models.backbones import CoopBackbone
from .layer_depth import layers_to_head

_HERE = 'optim_wrapper.paramwise_cfg'
_KEYS = ('decay_rate', 'custom_keys', 'bypass_duplicate')
#: Last parts of the names of what is learned for places and tokens, not for features.
_EMBEDDINGS = ('pos_embed', '_token', 'relative_position_bias_table')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CoopLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives each layer of a pretrained backbone a lower rate than the layer behind it.

    The rate of a layer is ``lr * decay_rate ** n``, with ``n`` the number of layers from there to
    the head: 1 for the last block, one more for each block before it, and most for the stem. Heads,
    necks, paths, and networks without a decay rate have ``lr``. (BEiT: BERT Pre-Training of Image
    Transformers, ICLR 2022, appendix; ConvNeXt, CVPR 2022, appendix A.) Layers are counted, so that
    networks of different depths need no ``num_layers``.

    It serves the networks of a :class:`CoopBackbone` as well as a single backbone. Layers are known
    of mmpretrain's ConvNeXt, Swin, ViT, BEiT and others with ``get_layer_depth``, of nearly all
    models of timm, and of mmseg's Swin, ViT, BEiT and MAE; a backbone of one's own defines
    ``get_layer_depth(name) -> (depth, layers)`` for the names of its parameters.

    Biases, norms and other vectors, embeddings of positions and tokens are trained without weight
    decay.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper, with ``optimizer``.
        paramwise_cfg: May have

            - ``decay_rate``: a number above 0 and at most 1 for all networks, or numbers by network
              for those that are named;
            - ``custom_keys``: as of mmengine; ``lr_mult`` multiplies the rate of the layer,
              ``decay_mult`` comes before the rule for weight decay;
            - ``bypass_duplicate``: as of mmengine, for networks that share parameters.

    Raises:
        ConfigError: Unknown keys or networks, a rate out of range, no ``optimizer.lr``, or a
            network whose layers are not known.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='CoopLayerDecayOptimWrapperConstructor',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     paramwise_cfg=dict(decay_rate=dict(top=0.9)),
        ... )
    """

    base_lr: float

    @override
    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = [key for key in self.paramwise_cfg if key not in _KEYS]
        if unknown or 'decay_rate' not in self.paramwise_cfg:
            given = f'has {unknown[0]!r}' if unknown else 'has no decay_rate'
            raise ConfigError(
                f'{_HERE} {given}; {type(self).__name__} needs decay_rate and takes '
                f'{" and ".join(_KEYS[1:])}. Layers are counted, and what has no weight decay is '
                'known.'
            )
        rates = self.paramwise_cfg['decay_rate']
        for rate in rates.values() if isinstance(rates, Mapping) else [rates]:
            if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
                raise ConfigError(
                    f'{_HERE}.decay_rate is {rates!r}; give a number above 0 and at most 1, or '
                    'such numbers by network: dict(top=0.9).'
                )
        if self.base_lr is None:
            raise ConfigError('optim_wrapper.optimizer has no lr; give the rate of the heads.')

    @override
    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:  # mmengine calls this for every module
            return
        factors = self._factors(module)
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            name = names[parameter]
            group['lr'] = group.get('lr', self.base_lr) * factors.get(name, 1)
            is_vector = parameter.ndim < 2 or name.endswith(('.bias', *_EMBEDDINGS))
            if is_vector and 'decay_mult' not in group:  # of custom_keys
                group['weight_decay'] = 0.0

    def _factors(self, model: nn.Module) -> dict[str, float]:
        """Factors of the rate, by the names of the parameters to whose networks it applies."""
        places = dict(backbone='backbone')
        if isinstance(model.backbone, CoopBackbone):
            places = {name: f'backbone.networks.{name}' for name in model.backbone.networks}
        rates = self.paramwise_cfg['decay_rate']
        if not isinstance(rates, Mapping):
            rates = dict.fromkeys(places, rates)
        factors = {}
        for network, rate in rates.items():
            if network not in places:
                raise ConfigError(
                    f'{_HERE}.decay_rate names the unknown network {network!r}; the networks are '
                    f'{list(places)}.'
                )
            backbone = model.get_submodule(places[network])
            layers = layers_to_head(backbone)
            if layers is None:
                raise ConfigError(
                    f'{_HERE}.decay_rate: the layers of network {network!r} '
                    f'({type(backbone).__name__}) are not known. They are for mmpretrain.ConvNeXt, '
                    "mmpretrain's other backbones with get_layer_depth, nearly all of timm, and "
                    "mmseg's SwinTransformer, VisionTransformer, BEiT and MAE. Name the networks "
                    'that shall have decaying rates, decay_rate=dict(NETWORK=0.9); others keep lr.'
                )
            factors.update({f'{places[network]}.{k}': rate**n for k, n in layers.items()})
            deepest = max(layers.values())
            print_log(
                f'Rates of network {network!r}: from {self.base_lr * rate**deepest:.3g} in the '
                f'first of {deepest} layers to {self.base_lr:.3g} in the head',
                'current',
            )
        return factors
