"""Finds slips in a config before anything is built: impossible keys, types and numbers."""

from __future__ import annotations

import difflib
import inspect
import operator
import re
import sys
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.registry import WEIGHT_INITIALIZERS
from torch.utils.data import DataLoader

from ..datasets.faults.walk import iter_datasets
from ..errors import ConfigError
from ..models.decode_heads import CoopHead
from ..models.segmentors import CrossCoopEncoderDecoder
from ..registry import REGISTRIES
from .signatures import Key, Keys, constructor_keys, misfits

INF = float('inf')
SPLITS = ('train', 'val', 'test')
_OUR_SCOPES = ('mmseg', 'mmseg_coop', 'mmengine')
#: What the stack and the tools read at the top of a config beside the arguments of the runner.
_ALSO_READ = ('custom_imports', 'runner_type', 'test_pipeline', 'tta_model', 'tta_pipeline')
#: Keys that mmengine and mmcv take out of a dictionary before they build it, by where it stands.
_TAKEN_OUT = dict(
    custom_hooks=('priority',),
    default_hooks=('priority',),
    norm_cfg=('requires_grad',),
    optim_wrapper=('constructor', 'paramwise_cfg', 'optimizer'),
    param_scheduler=('convert_to_iter_based',),
    test_cfg=('by_epoch',),
    train_cfg=('by_epoch',),
    val_cfg=('by_epoch',),
)
_LOADER_KEYS = (
    *('dataset', 'num_batch_per_epoch', 'disable_subprocess_warning'),
    *(name for name in inspect.signature(DataLoader).parameters if name != 'self'),
)
_TEST_CFG_KEYS = ('mode', 'crop_size', 'stride', 'output', 'keep_logits')
_REMOVABLE_HOOKS = (
    *('checkpoint', 'logger', 'param_scheduler', 'runtime_info', 'sampler_seed', 'timer'),
)
_PREFIXES = ('img_path', 'img_path2', 'seg_map_path', 'depth_map_path')
#: Lowest sensible value of numbers that mean the same in every class. Of sequences, each item.
_LOWEST = dict(
    base_channels=1,
    batch_size=1,
    channels=1,
    crop_size=1,
    decay_mult=0,
    depth=1,
    dilations=1,
    embed_dims=1,
    in_channels=1,
    loss_weight=-INF,
    lr=0,
    lr_mult=0,
    low_level_channels=1,
    low_level_in_channels=1,
    max_epochs=1,
    max_iters=1,
    momentum=0,
    num_classes=1,
    num_stages=1,
    num_workers=0,
    out_channels=1,
    prob=0,
    ratio_range=0,
    scale=-1,  # as mmcv's Resize calls a free side
    stem_channels=1,
    strides=1,
    val_interval=1,
    weight_decay=0,
    widen_factor=sys.float_info.min,
)
_KIND_NAMES: dict[Any, str] = {Mapping: 'a dictionary', str: 'a path'}
#: Keys of other classes that mean the same everywhere and are not checked by them.
_KINDS: dict[str, tuple[type, ...]] = dict(
    ann_file=(str,),
    custom_keys=(Mapping,),
    data_prefix=(Mapping,),
    data_root=(str,),
    default_hooks=(Mapping,),
    img_path=(str,),
    optim_wrapper=(Mapping,),
    paramwise_cfg=(Mapping,),
    seg_map_path=(str,),
    test_cfg=(Mapping,),
    test_dataloader=(Mapping,),
    train_cfg=(Mapping,),
    train_dataloader=(Mapping,),
    val_cfg=(Mapping,),
    val_dataloader=(Mapping,),
)
#: Which of them cannot be a sequence, a dictionary or None.
_SINGLE = (
    *('base_channels', 'batch_size', 'decay_mult', 'loss_weight', 'lr', 'lr_mult', 'max_epochs'),
    *('max_iters', 'num_stages', 'num_workers', 'stem_channels', 'val_interval', 'weight_decay'),
    'widen_factor',
)

#: Where a dictionary with the key ``type`` stands, and where a list or a dictionary of such.
_BUILT_EACH = (
    *('auxiliary_head', 'custom_hooks', 'datasets', 'decode_head', 'default_hooks', 'init_cfg'),
    *('loss_decode', 'param_scheduler', 'pipeline', 'test_evaluator', 'val_evaluator'),
    'vis_backends',
)
_BUILT = (
    *_BUILT_EACH,
    *('act_cfg', 'backbone', 'conv_cfg', 'data_preprocessor', 'dataset', 'fusion', 'model'),
    *('norm_cfg', 'optimizer', 'sampler', 'tta_model', 'visualizer'),
)
_BY_NAME = ('default_hooks', 'networks', 'param_scheduler')
#: Which of them cannot be None.
_NEEDED = ('backbone', 'dataset', 'decode_head', 'model', 'pipeline')


def check_config(cfg: Mapping[str, Any]) -> None:
    """Look for keys, types and numbers that cannot be meant.

    It says nothing where a class does not tell which arguments it takes, as with ``**kwargs`` whose
    destination is unknown, and nothing about classes of other scopes than mmseg's.

    Args:
        cfg: Config of a run.

    Raises:
        ConfigError: A key is unknown, has a value of a wrong type or an impossible number. The
            message gives the dotted path of the key.
    """
    if cfg.get('default_scope', 'mmengine') not in _OUR_SCOPES:
        return
    runner = constructor_keys(Runner).known
    for name in cfg:
        if name in runner:
            _check_value(name, cfg[name], Keys(runner, complete=False), 'the runner')
            _check_plain(cfg[name], name, name)
            _check_part(cfg[name], name)
        elif name in _ALSO_READ:
            _check_part(cfg[name], name)
        else:
            _check_variable(name, cfg[name], runner, getattr(cfg, 'text', ''))
    loop = cfg.get('train_cfg')
    if (
        isinstance(loop, Mapping)
        and loop.get('type') in (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop')
        and not {'max_iters', 'max_epochs'} & set(loop)
    ):
        raise ConfigError('train_cfg has no max_iters (or max_epochs); give one.')
    hooks = cfg.get('default_hooks')
    for name, hook in hooks.items() if isinstance(hooks, Mapping) else ():
        if hook is None and name not in _REMOVABLE_HOOKS:
            raise ConfigError(
                f'default_hooks.{name} is None, which removes one of {_REMOVABLE_HOOKS}; leave '
                'others out.'
            )
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, Mapping) and not {'optimizer', 'constructor'} & set(wrapper):
        plain = [key for key, value in wrapper.items() if not hasattr(value, 'step')]
        if set(plain) - {'type'} or not wrapper:
            raise ConfigError('optim_wrapper has no optimizer; give optim_wrapper.optimizer.')
    for split in SPLITS:
        _check_loader(cfg.get(f'{split}_dataloader'), f'{split}_dataloader')
    _check_test_cfg(cfg.get('model'))
    _check_preprocessor(cfg)
    _check_prefixes(cfg)


def find_types(name: Any) -> list[Any]:
    """Find what a ``type`` may stand for.

    Args:
        name: A registered name, or the class itself.

    Returns:
        What the registries hold under the name; several if it is registered more than once.
    """
    if not isinstance(name, str):
        return [name] if callable(name) else []
    found = []
    for registry in REGISTRIES.values():
        target = registry.get(name) if '.' in name else _registered(name, registry)
        if target is not None and target not in found:
            found.append(target)
    return found


def _registered(name: str, registry: Registry) -> Any:
    # What Registry.get does, which goes on to look for a module of that name.
    node: Registry | None = registry
    while node is not None:
        node.import_from_location()
        if name in node.module_dict:
            return node.module_dict[name]
        node = node.parent
    return None


def unknown_type(path: str, name: str) -> ConfigError:
    """Describe a type that no registry holds.

    Args:
        path: Dotted path of the part of the config.
        name: Its type.

    Returns:
        The error, with similar names.
    """
    nodes = [node for registry in REGISTRIES.values() for node in (registry.parent, registry.root)]
    known = {word for node in nodes if node is not None for word in node.module_dict}
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    hint = f'did you mean {", ".join(similar)}?' if similar else 'import what registers it first.'
    return ConfigError(f'{path}.type is {name!r}, which is not registered; {hint}')


def _check_part(part: Any, path: str) -> None:
    """Check a dictionary or a list and all that is in it."""
    _check_built(part, path)
    if isinstance(part, (list, tuple)):
        for index, item in enumerate(part):
            _check_part(item, f'{path}.{index}')
    if not isinstance(part, Mapping) or part.get('_scope_', 'mmseg') not in _OUR_SCOPES:
        return
    where = path.split('.')
    targets = find_types(part.get('type', 'OptimWrapper' if path == 'optim_wrapper' else None))
    if where[-1] == 'init_cfg' or (len(where) > 1 and where[-2] == 'init_cfg'):
        # Names such as Normal mean something else elsewhere; `override` is looked at by nothing.
        target = (
            WEIGHT_INITIALIZERS.get(part['type']) if isinstance(part.get('type'), str) else None
        )
        _check_keys(part, path, [target] if target else [], extra=('override',))
        if not isinstance(part.get('checkpoint', ''), str):
            raise ConfigError(f'{path}.checkpoint is {_shown(part["checkpoint"])}; give a file.')
        return
    extra = _TAKEN_OUT.get(where[-1], ()) + _TAKEN_OUT.get(where[-2] if len(where) > 1 else '', ())
    if 'constructor' not in part:  # that of an optimizer, which may take keys of its own
        _check_keys(part, path, targets, extra)
    for key, value in part.items():
        _check_plain(value, key, f'{path}.{key}')
        if key == 'paramwise_cfg':  # holds names of modules, not of arguments
            _check_plain_below(value, f'{path}.{key}')
        else:
            _check_part(value, f'{path}.{key}')
    if len(targets) == 1 and inspect.isclass(targets[0]) and issubclass(targets[0], CoopHead):
        for name, network in part.get('networks', {}).items():
            try:
                head = targets[0].head_class(network)
            except ValueError as error:
                raise ConfigError(f'{path}.networks.{name}: {error}') from error
            known = constructor_keys(head).known
            for key in known:
                if known[key].default is inspect.Parameter.empty and not {key} & {*part, *network}:
                    raise ConfigError(f'{path}.networks.{name} lacks {key}, as does {path}.')
            for key, value in network.items() if 'type' not in network else ():
                own = f'{path}.networks.{name}.{key}'
                _check_value(own, value, constructor_keys(head), head.__name__)


def _check_built(part: Any, path: str) -> None:
    """Check that something that is built from dictionaries consists of them."""
    name = path.rpartition('.')[2]
    if isinstance(part, Mapping) and 'type' in part:
        _check_type(part['type'], path, known=False)
    each = path.endswith('backbone.networks') or name in _BUILT_EACH
    if not (each or name in _BUILT) or (part is None and name not in _NEEDED):
        return
    if name == 'pipeline' and not part:
        raise ConfigError(f'{path} is {part!r}; give the transforms that load and pack an image.')
    parts = [] if name == 'default_hooks' else [(path, part)]
    if each and isinstance(part, (list, tuple)):
        parts = [(f'{path}.{index}', item) for index, item in enumerate(part)]
    elif isinstance(part, Mapping) and part and 'type' not in part and name in _BY_NAME:
        parts = [(f'{path}.{key}', item) for key, item in part.items() if item is not None]
    for where, item in parts:
        plain = item is None or isinstance(item, (bool, int, float, str, list, tuple))
        if isinstance(item, Mapping) and 'type' in item:
            _check_type(item['type'], where)
        elif plain or isinstance(item, Mapping):
            raise ConfigError(
                f'{where} is {_shown(item)}; give a dictionary with the key type, which names what '
                'is built.'
            )


def _check_type(name: Any, path: str, *, known: bool = True) -> None:
    if not isinstance(name, str):
        if not callable(name):
            raise ConfigError(f'{path}.type is {_shown(name)}; give the name of a class.')
    elif known and '.' not in name and not find_types(name):
        raise unknown_type(path, name)


def _check_keys(
    part: Mapping[str, Any], path: str, targets: list[Any], extra: tuple[str, ...]
) -> None:
    """Check the keys of a dictionary that one of the targets is built from."""
    keys = [_keys_of(target) for target in targets]
    if not keys or not all(inspect.isclass(t) or inspect.isfunction(t) for t in targets):
        return
    known = {name: key for one in keys for name, key in one.known.items()}
    complete = all(one.complete for one in keys)
    for name in extra:
        known.pop(name, None)
    names = [name for name in part if name not in ('type', '_scope_', '_delete_', *extra)]
    label = ' or '.join(target.__name__ for target in targets)
    for name in names:
        if name not in known:
            if complete:
                raise _unknown(f'{path}.{name}', label, [*known, *extra])
        elif len(targets) == 1:
            _check_value(f'{path}.{name}', part[name], keys[0], label)


def _keys_of(target: Any) -> Keys:
    keys = constructor_keys(target)
    if inspect.isclass(target) and issubclass(target, CoopHead):
        if target.head_type is None:  # the rest goes to heads of several types
            return keys
        shared = constructor_keys(target.head_class({}))  # which gets the rest
        return Keys({**shared.known, **keys.known}, shared.complete)
    if inspect.isclass(target) and issubclass(target, CheckpointHook):
        # The rest goes to this method, whose refusal would come with the first checkpoint only.
        saving = inspect.signature(Runner.save_checkpoint).parameters
        return Keys({**{name: Key() for name in saving if name != 'self'}, **keys.known}, True)
    return keys


def _check_value(path: str, value: Any, keys: Keys, label: str) -> None:
    name = path.rpartition('.')[2]
    key = keys.known.get(name)
    if key is None:
        if keys.complete:
            raise _unknown(path, label, list(keys.known))
    elif not key.takes(value):
        if key.strict and isinstance(value, (Mapping, list, tuple)):
            for inner, item in misfits(value, key.hint):
                path, value = f'{path}.{inner}', item
                break
        takes = key.text.replace('typing.', '')
        raise ConfigError(f'{path} is {_shown(value)}, but {label} takes {name}: {takes}.')


def _unknown(path: str, label: str, allowed: list[str]) -> ConfigError:
    name = path.rpartition('.')[2]
    similar = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    hint = f'; did you mean {similar[0]}?' if similar else '.'
    return ConfigError(
        f'{path} is unknown for {label}{hint} Allowed: {", ".join(sorted(allowed))}.'
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return f'{text if len(text) < 60 else text[:57] + "..."} ({type(value).__name__})'


def _check_variable(name: str, value: Any, runner: dict[str, Key], text: str) -> None:
    """Check a name at the top of a config that the stack does not read.

    Variables of the user stay: what the config itself reads, and names with other words or digits.
    """
    similar = difflib.get_close_matches(name, [*runner, *_ALSO_READ], n=1, cutoff=0.85)
    is_read = re.search(rf'\b{re.escape(name)}\b(?!\s*=[^=])', text)
    if not similar or is_read or re.search(r'\d', name):
        return
    words, meant = (word.split('_') for word in (name, similar[0]))
    same_words = len(words) == len(meant) or ''.join(words) == ''.join(meant)
    could_be = runner.get(similar[0], Key()).takes(value)
    if same_words and could_be and (isinstance(value, Mapping) or similar[0] != 'model'):
        raise ConfigError(f'{name} is read by nothing; did you mean {similar[0]}?')


def _check_plain_below(part: Any, path: str) -> None:
    for key, value in part.items() if isinstance(part, Mapping) else ():
        _check_plain(value, key, f'{path}.{key}')
        if path.endswith('.custom_keys') and not isinstance(value, Mapping):
            raise ConfigError(f'{path}.{key} is {_shown(value)}; give a dictionary.')
        _check_plain_below(value, f'{path}.{key}')


def _check_plain(value: Any, name: str, path: str) -> None:
    """Check a value whose name says what it can be."""
    kinds = _KINDS.get(name)
    plain = isinstance(value, (bool, int, float, str, list, tuple, Mapping))
    if kinds is not None and plain and not isinstance(value, kinds):
        raise ConfigError(f'{path} is {_shown(value)}; give {_KIND_NAMES[kinds[0]]}.')
    _check_number(value, name, path)


def _check_number(value: Any, name: str, path: str) -> None:
    lowest = _LOWEST.get(name)
    if lowest is None:
        return
    allowed = 'a number' if lowest == -INF else f'a number from {lowest} on'
    single = name in _SINGLE and not isinstance(value, (int, float))
    if single or isinstance(value, (str, Mapping)) or value in ([], ()):
        raise ConfigError(f'{path} is {_shown(value)}; give {allowed}.')
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_number(item, name, f'{path}.{index}')
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not value >= lowest:
        raise ConfigError(f'{path} is {value!r}; give {allowed}.')


def _check_loader(loader: Any, path: str) -> None:
    if not isinstance(loader, Mapping):
        return
    if 'dataset' not in loader:
        raise ConfigError(f'{path} has no dataset.')
    for name in loader:
        if name not in (*_LOADER_KEYS, '_delete_', '_scope_'):
            raise _unknown(f'{path}.{name}', 'a data loader', list(_LOADER_KEYS))
    hints = dict(batch_size=int, num_workers=int, persistent_workers=bool, drop_last=bool)
    for name, kind in hints.items():
        if name in loader and not isinstance(loader[name], (kind, int)):
            raise ConfigError(f'{path}.{name} is {_shown(loader[name])}; give {kind.__name__}.')
    if loader.get('persistent_workers') and not loader.get('num_workers'):
        raise ConfigError(
            f'{path}.persistent_workers is True, but {path}.num_workers is '
            f'{loader.get("num_workers", 0)}; set it to False, or give workers.'
        )


def _check_slip(name: str, path: str, known: tuple[str, ...], label: Any) -> None:
    """Check a key where classes may have keys of their own: only what looks like a slip is one."""
    if name not in known and difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        raise _unknown(path, str(label), list(known))


def _check_preprocessor(cfg: Mapping[str, Any]) -> None:
    """Check what makes a batch of images; it is found wanting in the first iteration only."""
    model = cfg.get('model')
    if not isinstance(model, Mapping):
        return
    targets = find_types(model.get('type'))
    if not targets or not all(
        inspect.isclass(t) and issubclass(t, EncoderDecoder) for t in targets
    ):
        return
    path = 'model.data_preprocessor'
    part = model.get('data_preprocessor', cfg.get('data_preprocessor'))
    if part is None and any(cfg.get(f'{split}_dataloader') for split in SPLITS):
        raise ConfigError(f"{path} is None; give one, such as dict(type='SegDataPreProcessor', …).")
    if not isinstance(part, Mapping) or find_types(part.get('type')) != [SegDataPreProcessor]:
        return
    for name in ('mean', 'std'):
        value = part.get(name)
        if value is not None and (
            not isinstance(value, (list, tuple))
            or not all(isinstance(item, (int, float)) for item in value)
        ):
            raise ConfigError(f'{path}.{name} is {_shown(value)}; give one number a channel.')
    if 0 in (part.get('std') or ()):
        raise ConfigError(f'{path}.std is {part["std"]}; it divides, so give no zero.')
    label, head = part.get('seg_pad_val', 255), model.get('decode_head')
    ignored = head.get('ignore_index') if isinstance(head, Mapping) else None
    if label is not None and (not isinstance(label, int) or label < 0) and label != ignored:
        raise ConfigError(f'{path}.seg_pad_val is {_shown(label)}; give a label, such as 255.')
    size = part.get('size')
    if size is not None and (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or not all(isinstance(side, int) and side > 0 for side in size)
    ):
        raise ConfigError(f'{path}.size is {_shown(size)}; give (height, width) in pixels.')


def _check_test_cfg(model: Any) -> None:
    """Check how mmseg's plain segmentors go over an image; they look at it when they predict."""
    if not isinstance(model, Mapping) or not isinstance(model.get('test_cfg'), Mapping):
        return
    targets = find_types(model['type']) if 'type' in model else []
    if not all(getattr(t, 'inference', None) is EncoderDecoder.inference for t in targets):
        return
    test_cfg, path = model['test_cfg'], 'model.test_cfg'
    for name in test_cfg:
        _check_slip(name, f'{path}.{name}', _TEST_CFG_KEYS, model['type'])
    mode = test_cfg.get('mode', 'whole')
    if 'mode' not in test_cfg and CrossCoopEncoderDecoder not in targets:
        raise ConfigError(f"{path} has no mode; give mode='whole' or 'slide'.")
    if mode not in ('whole', 'slide'):
        raise ConfigError(f"{path}.mode is {mode!r}; give 'whole' or 'slide'.")
    for name in ('crop_size', 'stride') if mode == 'slide' else ():
        value = test_cfg.get(name)
        if (
            not isinstance(value, (list, tuple))
            or len(value) != 2
            or not all(isinstance(side, int) and side > 0 for side in value)
        ):
            raise ConfigError(
                f"{path}.{name} is {value!r}, but mode='slide' needs (height, width) in pixels."
            )
    if mode == 'slide' and any(map(operator.gt, test_cfg['stride'], test_cfg['crop_size'])):
        raise ConfigError(
            f'{path}.stride is {test_cfg["stride"]}, more than {path}.crop_size, '
            f'{test_cfg["crop_size"]}, which leaves pixels uncovered; give at most that, such as '
            'two thirds.'
        )


def _check_prefixes(cfg: Mapping[str, Any]) -> None:
    """Check where datasets look for their files."""
    for split in SPLITS:
        loader, path = cfg.get(f'{split}_dataloader'), f'{split}_dataloader.dataset'
        if not isinstance(loader, Mapping) or not isinstance(loader.get('dataset'), Mapping):
            continue
        for dataset in iter_datasets(loader['dataset']):
            prefixes = dataset.get('data_prefix', {})
            if not prefixes and 'data_prefix' in dataset:
                raise ConfigError(f'{path}.data_prefix is {prefixes!r}; give dict(img_path=…).')
            for name, folder in prefixes.items():
                if not isinstance(folder, str):
                    raise ConfigError(
                        f'{path}.data_prefix.{name} is {_shown(folder)}; give a path.'
                    )
                _check_slip(name, f'{path}.data_prefix.{name}', _PREFIXES, dataset['type'])
