"""What is slow says why, and has a witness in `make test`."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TESTS = Path(__file__).parent
TREES = {
    str(path.relative_to(TESTS)): ast.parse(path.read_text())
    for path in sorted(TESTS.rglob("*.py"))
}


def calls_of_slow(tree):
    """What each call of `slow` is given, by argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "slow":
            named = {one.arg: ast.literal_eval(one.value) for one in node.keywords}
            yield {"reason": [ast.literal_eval(one) for one in node.args], **named}


MARKS = [
    pytest.param(found, id=f"{file} {number}")
    for file, tree in TREES.items()
    for number, found in enumerate(calls_of_slow(tree))
]


def always_slow(function):
    """Whether a test is slow in all its cases, on every backend."""
    return any(
        "witness" in found
        for decorator in function.decorator_list
        if ast.unparse(decorator).startswith("slow(")
        for found in calls_of_slow(decorator)
    )


QUICK = {
    node.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and not always_slow(node)
}


@pytest.mark.parametrize("found", MARKS)
def test_a_slow_test_has_a_reason_and_a_witness(found):
    (reason,) = found["reason"]
    assert len(reason.split()) >= 4
    if "witness" in found:
        assert found["witness"].startswith("test_")
        assert found["witness"] in QUICK
    else:
        assert found["but_on"] in {"tensorflow", "jax", "torch"}


def test_marks_are_made_in_one_place():
    makers = [
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.slow"
    ]
    assert makers == ["slow.py"]


SEEN = """
@slow("takes a minute on JAX", witness="test_b")
def test_a(): pass
@slow("takes a minute on JAX", but_on="torch")
def test_b(): pass
"""


def test_this_file_s_own_reading():
    tree = ast.parse(SEEN)
    assert [found.get("but_on") for found in calls_of_slow(tree)] == [None, "torch"]
    assert [always_slow(function) for function in tree.body] == [True, False]
