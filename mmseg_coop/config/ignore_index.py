"""Lets all parts of a config ignore the same label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from ..errors import ConfigError
from .class_check import find_heads
from .parts import SPLITS, find_types, walk
from .signatures import constructor_keys

_NAMES = ('ignore_index', 'ignore_label', 'seg_pad_val')
#: What all of mmseg ignores by default.
_DEFAULT = 255


class _Place(NamedTuple):
    """Where a part of a config says which label it ignores, or could."""

    path: str
    part: MutableMapping[str, Any]
    key: str
    #: None where the config leaves it out.
    label: Any

    @property
    def pads(self) -> bool:
        """Whether it is the label of pixels that are added to an image."""
        return self.key in ('seg_pad_val', 'pad_val')

    def set(self, label: int) -> None:
        if self.key != 'pad_val':
            self.part[self.key] = label
            return
        given = self.part.get('pad_val', 0)
        others = given if isinstance(given, Mapping) else dict(img=given)
        self.part['pad_val'] = {**others, 'seg': label}


def settle_ignore_index(cfg: Mapping[str, Any]) -> None:
    """Let all parts of a config ignore the same label, in place.

    The label that a config gives to a head, a dataset or the loading of labels goes to all that it
    leaves out: to other heads, losses, datasets, transforms and metrics, and to what pads labels.
    Padding and losses with 255, mmseg's default, follow as well, even where it is written down.

    Args:
        cfg: Config of a run.

    Raises:
        ConfigError: The config gives several labels; the message names them and their places.
    """
    num_classes = max((number for _, number in find_heads(cfg.get('model'))), default=0)
    left_out, given, sources = [], [], []
    for place in _places(cfg):
        in_loss = '.loss_decode.' in place.path
        if place.label is None or (place.label == _DEFAULT and (place.pads or in_loss)):
            left_out.append(place)
        elif place.pads and not num_classes:
            pass  # of depth maps
        elif in_loss and place.label in range(num_classes):
            pass  # a class that the loss leaves out
        else:
            given.append(place)
            if not place.pads and '_evaluator.' not in place.path:
                sources.append(place.label)
    label = sources[0] if sources else _DEFAULT
    if any(place.label != label for place in given):
        places = [f'{place.path} is {place.label!r}' for place in given]
        if not sources:
            places.append(f'the default of all others is {label}')
        raise ConfigError(
            f'the label that is ignored differs: {", ".join(places)}; give the same everywhere, or '
            'model.decode_head.ignore_index alone, which all others follow.'
        )
    for place in left_out if label != _DEFAULT else ():
        place.set(label)


def _places(cfg: Mapping[str, Any]) -> Iterator[_Place]:
    names = [f'{split}_{what}' for split in SPLITS for what in ('dataloader', 'evaluator')]
    names += ['tta_pipeline', 'model']
    if 'data_preprocessor' not in (cfg.get('model') or {}):
        names.append('data_preprocessor')
    for name in names:
        for path, part in walk(cfg.get(name), name):
            yield from _places_of(path, part)


def _places_of(path: str, part: Any) -> Iterator[_Place]:
    # a cooperative head hands on to its networks what it does not take itself
    heads = [
        target.head_class({}) if getattr(target, 'head_type', None) else target
        for target in find_types(part.get('type'))
    ]
    known = constructor_keys(heads[0]).known if len(heads) == 1 else {}
    default = {name: key.default for name, key in known.items()}
    for name in _NAMES:
        if name in part and part[name] is None:
            continue  # ignores no label
        if name in part or default.get(name) == _DEFAULT:
            yield _Place(f'{path}.{name}', part, name, part.get(name))
    if isinstance(default.get('pad_val'), Mapping):  # mmcv's Pad
        values = part.get('pad_val')
        label = values.get('seg') if isinstance(values, Mapping) else None
        yield _Place(f'{path}.pad_val.seg', part, 'pad_val', label)
