"""Checks of what models are built from, and of what they get."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses.cross_entropy_loss import binary_cross_entropy
from mmseg.models.losses.lovasz_loss import lovasz_hinge

from ..errors import did_you_mean

#: What segmentors read from ``test_cfg``.
_TEST_CFG_KEYS = ('mode', 'crop_size', 'stride', 'output', 'keep_logits')


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError unless the argument ``name`` has one of ``choices`` as its ``value``."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f'{name}={value!r} is unknown; choose one of {choices}.')


def check_positive(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a positive integer as its ``value``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name}={value!r} is not a positive integer; give a number from 1 on.')


def check_positive_number(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a finite number above 0 as ``value``."""
    if not isinstance(value, (int, float)) or not 0 < value < math.inf or isinstance(value, bool):
        raise ValueError(f'{name}={value!r} is not positive; give a number above 0.')


def check_all_positive(name: str, values: object, *, example: str) -> None:
    """Raise a ValueError unless ``name`` has positive integers, at least one, as its ``values``."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f'{name}={values!r} holds no numbers; give at least one, as in {example}.')
    for value in values:
        check_positive(f'{name}={values!r}: number', value)


def check_fraction(name: str, value: object) -> None:
    """Raise a ValueError unless the argument ``name`` has a number from 0 to 1 as its ``value``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f'{name}={value!r} is no fraction; give a number from 0 to 1.')


def check_test_cfg(test_cfg: Mapping[str, Any]) -> None:
    """Raise a ValueError unless mmseg can go over an image as ``test_cfg`` says.

    mmseg itself looks at it with the first prediction.
    """
    for name in test_cfg:
        hint = did_you_mean(name, _TEST_CFG_KEYS, sure=True)
        if hint and name not in _TEST_CFG_KEYS:  # others may have keys of their own
            raise ValueError(f'test_cfg.{name} is unknown{hint}')
    check_choice('test_cfg.mode', test_cfg.get('mode'), ('whole', 'slide'))
    if test_cfg['mode'] == 'whole':
        return
    for name in ('crop_size', 'stride'):
        check_all_positive(f'test_cfg.{name}', test_cfg.get(name), example='(512, 512)')
        if len(test_cfg[name]) != 2:
            raise ValueError(f'test_cfg.{name}={test_cfg[name]!r} is not (height, width).')
    if any(map(operator.gt, test_cfg['stride'], test_cfg['crop_size'])):
        raise ValueError(
            f'test_cfg.stride={test_cfg["stride"]} is more than crop_size='
            f'{test_cfg["crop_size"]}, which leaves pixels uncovered; give at most that, such as '
            'two thirds.'
        )


def check_losses(head: BaseDecodeHead) -> None:
    """Compare the losses of a head with its outputs.

    With a single output most losses of mmseg fail, or train nothing, or the opposite (DiceLoss).

    Args:
        head: A head with one output a class, or with one in all.

    Raises:
        ValueError: A loss has another number of class weights, or cannot learn from one output.
    """
    losses = head.loss_decode
    for loss in losses if isinstance(losses, Iterable) else [losses]:
        name = f'loss_decode {type(loss).__name__}'
        criterion = getattr(loss, 'cls_criterion', None)
        weights: Any = getattr(loss, 'class_weight', None)
        listed = isinstance(weights, (list, tuple, np.ndarray))  # an array comes from a file
        if listed and len(weights) != head.out_channels:
            raise ValueError(
                f'{name} has class_weight={list(weights)}, {len(weights)} numbers, but the head '
                f'has {head.out_channels} outputs; give one number each.'
            )
        if weights is not None and criterion is binary_cross_entropy and head.out_channels > 1:
            raise ValueError(
                f'{name} has class_weight and use_sigmoid=True, which go together with '
                'out_channels=1 only; leave one of them out.'
            )
        binary = criterion in (binary_cross_entropy, lovasz_hinge)
        if (
            head.out_channels == 1 < head.num_classes
            and not binary
            and type(loss).__module__.startswith('mmseg.')
        ):
            raise ValueError(
                f'{name} cannot learn two classes from out_channels=1; use CrossEntropyLoss with '
                'use_sigmoid=True and num_classes=2, or leave out_channels out, for one output a '
                'class: see docs/binary_segmentation.md.'
            )
