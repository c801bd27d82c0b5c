"""What a value in an attribute refers to."""

import types

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


PART = object()


def _of_a_closure():
    part = PART
    return lambda: part


def _with_an_attribute():
    def function():
        pass

    function.part = PART
    return function


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (_of_a_closure(), True),
        (lambda part=PART: part, True),
        (lambda *, part=PART: part, True),
        (_with_an_attribute(), True),
        (lambda: PART, False),  # of the module, whose names are everyone's
    ],
    ids=["closure", "default", "keyword", "attribute", "module"],
)
def test_what_a_function_refers_to(function, wanted):
    value = types.SimpleNamespace(function=[function])
    assert holds(value, lambda one: one is PART) == wanted
