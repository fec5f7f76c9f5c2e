"""Items made ahead of their reader: in order, with exceptions in their place, and no longer than they are wanted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tumorlens.core.prefetch import prefetch


def test_order_is_kept():
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))


def test_an_exception_arrives_in_its_place():
    def items():
        yield 1
        raise ValueError("here")

    found = prefetch(items(), 2)
    assert next(found) == 1
    with pytest.raises(ValueError, match="here"):
        next(found)


def test_a_reader_that_stops_stops_the_thread():
    made = itertools.count()
    found = prefetch(made, 2)
    assert next(found) == 0
    found.close()
    assert next(made) < 6


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 4))
def test_any_items_any_size(items, size):
    assert list(prefetch(iter(items), size)) == items
