from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
from torch import nn

from mmseg_coop.config.signatures import constructor_keys, mismatch


class Base:
    def __init__(self, first, second=2):
        self.values = first, second


class HandsOn(Base):
    def __init__(self, own, **kwargs):
        super().__init__(**kwargs)
        self.own = own


class TakesOut(Base):
    def __init__(self, **options):
        if 'third' in options:
            self.third = options.pop('third')
        self.fourth = options.get('fourth', 4)
        super(TakesOut, self).__init__(**options)  # noqa: UP008  # as older classes write it


class Elsewhere(Base):
    def __init__(self, **kwargs):
        super().__init__(1)
        self.inner = dict(**kwargs)


class Both(Base):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        print(kwargs)


class Swallows(Base):
    def __init__(self, **kwargs):
        super().__init__(1)


class Inherits(HandsOn):
    pass


class Three(Base):
    def __init__(self, first, second, third=3):
        super().__init__(first, second)
        self.third = third


class Gives(Three):
    def __init__(self, own, **kwargs):
        super().__init__(1, second=own, **kwargs)


@pytest.mark.parametrize(
    ('cls', 'names'),
    [
        (Base, {'first', 'second'}),
        (HandsOn, {'own', 'first', 'second'}),
        (Inherits, {'own', 'first', 'second'}),
        (TakesOut, {'third', 'fourth', 'first', 'second'}),
        (Elsewhere, None),
        (Both, None),
        (Swallows, None),
    ],
)
def test_keys_are_known_where_the_code_hands_them_on_and_does_nothing_else(cls, names):
    keys = constructor_keys(cls)
    assert keys.complete == (names is not None)
    assert names is None or set(keys.known) == names


@pytest.mark.parametrize(
    ('cls', 'required'),
    [(Base, {'first'}), (HandsOn, {'own', 'first'}), (Gives, {'own'}), (Elsewhere, set())],
)
def test_what_the_next_class_is_given_is_neither_required_nor_allowed(cls, required):
    keys = constructor_keys(cls)
    assert keys.required == required
    assert set(keys.known) >= required
    assert cls is not Gives or set(keys.known) == {'own', 'third'}


@pytest.mark.parametrize(
    ('value', 'hint', 'exactly', 'roughly'),
    [
        (1, int, True, True),
        ('1', int, False, False),
        ([1], int, False, False),
        (None, int, False, True),
        (None, int | None, True, True),
        (1, str, False, True),
        ('ab', Sequence[str], False, False),
        ([1, 2], Sequence[int], True, True),
        ((1, 'a'), Sequence[int], False, False),
        ((1, 'a'), tuple[int, str], True, True),
        (dict(a=1), Mapping[str, int], True, True),
        (dict(a='b'), Mapping[str, int], False, False),
        ([1], Mapping[str, int], False, True),
        ('a', int | Sequence[int], False, False),
        ([1, 2], Sequence[str] | Sequence[int], True, True),
        (3, nn.Module | dict, False, False),
        (3, nn.Module, False, True),
        ([3], Sequence[nn.Module | dict], False, False),
        (3, Literal['a', 'b'], False, True),
        (object(), Any, True, True),
        (object(), 'not known', True, True),
    ],
)
def test_what_fits_an_annotation(value, hint, exactly, roughly):
    assert (mismatch(value, hint, exact=True) is None) == exactly
    assert (mismatch(value, hint, exact=False) is None) == roughly


def test_the_item_that_does_not_fit_is_found():
    hint = str | Mapping[str, Sequence[str]]
    value = dict(top=['bottom'], bottom=[3])
    assert mismatch(value, hint, exact=True, path='a') == ('a.bottom.0', 3)
