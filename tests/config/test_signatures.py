from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from mmseg_coop.config.signatures import constructor_keys, fits, misfits


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
    ('value', 'hint', 'exactly', 'roughly'),
    [
        (1, int, True, True),
        (True, int, False, True),
        (1.5, int, False, True),
        ('1', int, False, False),
        ([1], int, False, False),
        (None, int, False, True),
        (1, float, True, True),
        (1, bool, True, True),
        (2, bool, False, True),
        ('a', str, True, True),
        (1, str, False, True),
        ([1, 2], Sequence[int], True, True),
        ((1, 'a'), Sequence[int], False, True),
        ('ab', Sequence[str], False, False),
        (dict(a=1), Mapping[str, int], True, True),
        (dict(a='b'), Mapping[str, int], False, True),
        ([1], Mapping[str, int], False, True),
        (3, int | None, True, True),
        ('a', int | Sequence[int], False, False),
        (None, int | None, True, True),
        ('a', Literal['a', 'b'], True, True),
        ('c', Literal['a', 'b'], False, True),
        (object(), Any, True, True),
        (object(), 'not known', True, True),
    ],
)
def test_what_fits_an_annotation(value, hint, exactly, roughly):
    assert fits(value, hint, strict=True) == exactly
    assert fits(value, hint, strict=False) == roughly


def test_the_item_that_does_not_fit_is_found():
    hint = str | Mapping[str, Sequence[str]]
    assert list(misfits(dict(top=['bottom'], bottom=[3]), hint)) == [('bottom.0', 3)]
