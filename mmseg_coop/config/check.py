"""Finds slips in a config before anything is built: it binds every part to what the part names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseInit
from mmengine.optim import BaseOptimWrapper, _ParamScheduler
from mmengine.runner import BaseLoop, Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..errors import ConfigError, did_you_mean
from ..models.decode_heads import CoopHead
from ..models.decode_heads.levels import READS
from ..models.decode_heads.transfer import Transfer
from .parts import OUR_SCOPES, SPLITS, find_types, registered_names, short, walk
from .signatures import Key, Keys, constructor_keys, mismatch

#: What the stack and the tools read at the top of a config beside the arguments of the runner.
_ALSO_READ = ('custom_imports', 'runner_type', 'test_pipeline', 'tta_model', 'tta_pipeline')
#: What the runner builds, and needs to be told of which class.
_TYPED = ('model', 'param_scheduler', 'visualizer')
#: What the runner builds from parts that name no type.
_DEFAULT_TYPES: dict[str, Any] = dict(
    train_cfg='IterBasedTrainLoop',
    val_cfg='ValLoop',
    test_cfg='TestLoop',
    optim_wrapper='OptimWrapper',
    log_processor='LogProcessor',
    **{f'{split}_dataloader': DataLoader for split in SPLITS},
)
#: Parts that are built by themselves, and the keys that they may have or lack beside the arguments
#: of their class, as what builds them takes the keys out or adds them.
_BUILT: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((BaseDataset, BaseDecodeHead, BaseMetric, BaseSegmentor, BaseTransform), ()),
    BaseInit: ('override',),
    BaseLoop: ('by_epoch', 'runner', 'dataloader', 'evaluator'),
    BaseOptimWrapper: ('paramwise_cfg',),
    DataLoader: ('num_batch_per_epoch', 'disable_subprocess_warning'),
    Hook: ('priority',),
    Optimizer: ('params',),
    Transfer: (),
    _ParamScheduler: ('convert_to_iter_based', 'optimizer', 'epoch_length'),
}


def check_config(cfg: Mapping[str, Any]) -> None:
    """Bind every dictionary with a ``type`` to the signature of what that names.

    Nothing is said where a class does not tell which arguments it takes, as with ``**kwargs`` whose
    destination is unknown, and nothing about classes of other scopes than mmseg's. Numbers are
    left to those that take them, see :func:`config_errors`.

    Args:
        cfg: Config of a run.

    Raises:
        ConfigError: A key is unknown or missing, or has a value of a wrong kind. The message gives
            its dotted path.
    """
    if cfg.get('default_scope', 'mmengine') not in OUR_SCOPES:
        return
    # these annotations are exact, but for texts: the level of the log may be a number
    runner = {
        name: key._replace(exact=mismatch('', key.hint, exact=True) is not None)
        for name, key in constructor_keys(Runner).known.items()
    }
    around = {path: dict(type=name) for path, name in _DEFAULT_TYPES.items()}
    loop = cfg.get('train_cfg')
    if isinstance(loop, Mapping) and loop.get('by_epoch'):
        around['train_cfg'] = dict(type='EpochBasedTrainLoop')
    for name, value in cfg.items():
        if name in runner:
            _check_value(name, value, Keys(runner, complete=False), 'the runner')
            if value == {} and name in _TYPED:
                raise ConfigError(f'{name} is {{}} (dict); give it a type, the name of a class.')
        elif name not in _ALSO_READ:
            _check_variable(name, value, runner, getattr(cfg, 'text', ''))
            continue
        for path, part in walk(value, name):
            _check_part(path, part, around)


def _check_part(path: str, part: Mapping[str, Any], around: dict[str, dict[str, Any]]) -> None:
    """Check a dictionary; ``around`` is what each gets from those around it, and is added to."""
    given = around.get(path, {})
    name = part.get('type', given.get('type'))
    targets = _named(path, name) if 'type' in part else find_types(name)
    if len(targets) != 1 or 'constructor' in part:  # of an optimizer, which may read what it likes
        return
    (target,) = targets
    kind = target if inspect.isclass(target) else object
    keys = constructor_keys(target)
    if issubclass(kind, CoopHead):
        keys = _bind_networks(target, path, part, around)
    if issubclass(kind, CheckpointHook):  # the rest goes there, but with the first checkpoint only
        keys = Keys({**constructor_keys(Runner.save_checkpoint).known, **keys.known}, True)
    built = next((base for base in _BUILT if issubclass(kind, base)), None)
    extra = ('requires_grad',) if path.endswith('norm_cfg') else _BUILT.get(built, ())
    known = Keys({**dict.fromkeys(extra, Key()), **keys.known}, keys.complete)
    label = getattr(target, '__name__', repr(target))
    for key, value in part.items():
        if key not in ('type', '_scope_'):
            _check_value(f'{path}.{key}', value, known, label)
    missing = sorted(constructor_keys(target).required - {*part, *given, *extra})
    if built and missing:
        raise ConfigError(f'{path} has no {missing[0]}, which {label} needs.')


def _named(path: str, name: Any) -> list[Any]:
    """What a ``type`` may mean."""
    if not isinstance(name, str) and not callable(name):
        raise ConfigError(f'{path}.type is {_shown(name)}; give the name of a class.')
    targets = find_types(name)
    if not targets and '.' not in name:
        hint = did_you_mean(name, registered_names(), sure=True)
        if hint:  # else it may be the name of something else; who builds it says if not
            raise ConfigError(f'{path}.type is {name!r}, which is not registered{hint}')
    return targets


def _bind_networks(
    target: Any, path: str, part: Mapping[str, Any], around: dict[str, dict[str, Any]]
) -> Keys:
    """Note what the parts of a head of networks get; return the keys of that head."""
    own = constructor_keys(target)
    for place, _ in [*walk(part.get('transfer'), f'{path}.transfer')][1:]:  # behind the list itself
        around[place] = dict(type=Transfer)
    heads = []
    for place, network in walk(part.get('networks'), f'{path}.networks'):
        if place.count('.') == path.count('.') + 2:
            if 'type' in network:
                _named(place, network['type'])
            try:
                head: Any = target.head_class(network)
            except ValueError as error:
                raise ConfigError(f'{place}: {error}') from error
            # the segmentor fills in the channels
            around[place] = {**dict.fromkeys(getattr(head, 'reads', READS)), **part, 'type': head}
            heads.append(constructor_keys(head))
    shared = {name: key for head in heads for name, key in head.known.items()}
    complete = bool(heads) and all(head.complete for head in heads)
    return Keys({**shared, **own.known}, complete)


def _check_value(path: str, value: Any, keys: Keys, label: str) -> None:
    name = path.rpartition('.')[2]
    key = keys.known.get(name)
    if key is None and keys.complete:
        hint = did_you_mean(name, keys.known) or '.'
        raise ConfigError(
            f'{path} is unknown for {label}{hint} Allowed: {", ".join(sorted(keys.known))}.'
        )
    if key is None:
        return
    if (
        isinstance(value, Mapping)
        and isinstance(key.default, Mapping)
        and 'type' not in key.default
    ):
        for inner in value.keys() - key.default.keys():
            hint = did_you_mean(inner, key.default, sure=True)
            if hint:
                raise ConfigError(f'{path}.{inner} is unknown{hint}')
    misfit = key.mismatch(value, path)
    if misfit is not None:
        place, value = misfit
        takes = re.sub(r'\w+\.', '', inspect.formatannotation(key.hint))
        raise ConfigError(f'{place} is {_shown(value)}, but {label} takes {name}: {takes}.')


def _shown(value: Any) -> str:
    return f'{short(value)} ({type(value).__name__})'


def _check_variable(name: str, value: Any, runner: Mapping[str, Key], text: str) -> None:
    """Check a name at the top of a config that the stack does not read.

    Variables of the user stay: what the config itself reads, and names with other words or digits.
    """
    if re.search(r'\d', name) or re.search(rf'\b{re.escape(name)}\b(?!\s*=[^=])', text):
        return
    letters, known = name.replace('_', ''), {**dict.fromkeys(_ALSO_READ, Key()), **runner}
    could_be = [
        meant
        for meant, key in known.items()
        if meant.count('_') == name.count('_') or meant.replace('_', '') == letters
        if key.mismatch(value, name) is None
    ]
    hint = did_you_mean(name, could_be, sure=True)
    if hint:
        raise ConfigError(f'{name} is read by nothing{hint}')
