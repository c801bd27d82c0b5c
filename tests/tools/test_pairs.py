"""What is said where nothing is certain."""

import pytest

from cases_names import items
from keras_bn.tools._foreign.pairs import ambiguous, refusal

pytestmark = pytest.mark.once


def test_what_is_ambiguous_is_told():
    text = ambiguous([{"a": "x", "b": "y", "c": "q"}, {"d": "r", "a": "x", "b": "z"}])
    lines = "\n  b: y, z\n  c: None, q\n  d: None, r"
    assert text.endswith(f"match in 2 ways. Received, layer by layer:{lines}")


def test_a_doubt_is_told_once_and_twelve_at_most():
    text = refusal([], [], ["a", "a", *map(str, range(20))])
    doubts = [line for line in text.splitlines() if line.startswith("- ")]
    assert doubts == ["- a", *(f"- {number}" for number in range(11))]
    assert "Candidates" not in text


@pytest.mark.parametrize(("count", "more"), [(12, ""), (13, " and 1 more")])
def test_twelve_names_are_shown(count, more):
    ours = items([f"layer{i}" for i in range(count)])
    text = refusal(ours, items(["x"] * count), [])
    assert f"{count} layers, {[one.name for one in ours[:12]]}{more}, and" in text
    assert len(text.partition("equal size:\n")[2].splitlines()) == 12
