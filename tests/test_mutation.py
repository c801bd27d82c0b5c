"""What `tests/mutate.py` stands on: the faults it makes, and who looks for them."""

import collections
import contextlib
import types

import pytest

from mutation.faults import faults
from mutation.tracing import Tracer, likely

pytestmark = pytest.mark.once

MADE = {
    # a source: what it becomes, by one fault each
    "a + b": ["a - b"],
    "-a * 2.5": ["-a / 2.5", "(a) * 2.5", "-a * 5.0"],
    "a < b": ["a <= b"],
    "a is not b": ["a is b"],
    "(a) and (b)": ["(a) or (b)"],
    "x = 1 if a else b": ["x = 2 if a else b", "x = 1 if (not (a)) else b"],
    "f(a, b, c=True)": ["pass", "f(a, b, )", "f(a, b, c=False)"],
    "x = f(a)": ["x = (a)"],
    "x = f(x)": ["pass", "x = (x)"],
    "x.y = f()": ["pass"],
    "a, b = f(c), a": ["pass", "a, b = (c), a"],
    "if a:\n    raise ValueError(f'{1 + 2}')": [
        "if (not (a)):\n    raise ValueError(f'{1 + 2}')",
        "if a:\n    pass",
    ],
    # What is for people, or not run.
    "def f(a: 'int | None' = None) -> g(1): 'text'": [],
    "Some = int | None": [],
    "x: f(2)": [],
    "zip(a, strict=True)": ["pass"],
    "draw(fontsize=8)": ["pass"],
}


@pytest.mark.parametrize(("source", "expected"), MADE.items(), ids=MADE)
def test_faults(source, expected):
    found = [fault.applied(source) for fault in faults(source)]
    assert sorted(found) == sorted(expected)


def test_a_fault_knows_its_statement():
    source = "def f(a,\n      b=1):\n    'ä'; return g(\n        a + b)"
    found = {fault.difference(source)[1]: fault.lines for fault in faults(source)}
    assert found == {
        "b=2):": (1, 2),
        "a - b)": (3, 4),
        "'ä'; return (a + b)": (3, 4),
    }


def test_who_looks_for_a_fault():
    def traced(seconds, lines, apart=False):
        return {"seconds": seconds, "apart": apart, "lines": {"a.py": lines}}

    traces = {
        "slow": traced(5, [3]),
        "quick": traced(1, [3, 4]),
        "elsewhere": traced(1, [8]),
        "apart": traced(1, [], apart=True),
        "too slow": traced(50, [3]),
    }
    none = collections.Counter()
    assert likely(traces, "a.py", (2, 3), none, 20) == (["quick", "slow", "apart"], 7)
    killed = collections.Counter(slow=9)
    assert likely(traces, "a.py", (4, 4), killed, 20) == (["quick", "apart"], 2)
    assert likely(traces, "a.py", (2, 3), killed, 6) == (["slow", "quick"], 6)
    # As the module is imported: by all tests that run some of it.
    names, _ = likely(traces, "a.py", (1, 1), none, 99)
    assert set(names) == set(traces)
    assert names[-1] == "apart"
    names, _ = likely(traces, "data.py", (1, 1), none, 3)
    assert set(names) == {"quick", "elsewhere", "apart"}


def test_what_a_shared_fixture_does_is_of_all_its_tests():
    tracer = Tracer("nowhere")

    def run(hook, *inside, **about):
        steps = hook(types.SimpleNamespace(**about))
        next(steps)
        for one in inside:
            one()
        with contextlib.suppress(StopIteration):
            steps.send(None)

    def starts_a_process():
        tracer._hear("subprocess.Popen", ())

    def set_up():
        run(tracer.pytest_fixture_setup, starts_a_process, argname="replicas")

    for name, fixtures, inside in (
        ("first", ["replicas"], [set_up]),
        ("second", ["replicas"], []),
        ("other", [], []),
    ):
        about = {"nodeid": name, "fixturenames": fixtures}
        run(tracer.pytest_runtest_protocol, *inside, **about)
    apart = {name: one["apart"] for name, one in tracer.results()["tests"].items()}
    assert apart == {"first": True, "second": True, "other": False}
