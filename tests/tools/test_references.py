"""What a value in an attribute refers to."""

import pytest

from keras_bn.tools._copies.references import holds

pytestmark = pytest.mark.once


def test_a_part_of_a_model_is_found_behind_any_count_of_numbers():
    wanted = object()
    value = [[wanted], *map(float, range(30_000))]
    assert holds(value, lambda one: one is wanted)


def test_what_refers_to_itself_is_looked_at_once():
    looked_at = []
    value = []
    value += [value, {"again": value}]
    assert not holds(value, lambda one: looked_at.append(id(one)))
    assert len(looked_at) == len(set(looked_at)) == 2
