"""What tests say of a fault in a copy of the package."""

import os
import sys
import time
from pathlib import Path

import pytest

from mutation.patches import CalledWhileImported, Patches, changed
from mutation.processes import forked, run_pytest
from mutation.tracing import InOrder, likely


class Experiment:
    """Puts faults into a copy of the package, and lets tests look for them.

    Args:
        package: The folder that holds the copy.
        tests_of: The traces of the tests near a file, by its name.
        killed: How many faults each test has found so far; counted further.
        budget: Seconds of tests for a fault.
    """

    def __init__(self, package, tests_of, killed, budget):
        self._package, self._tests_of = package, tests_of
        self._killed, self._budget = killed, budget

    def run(self, chosen, note):
        """Tries faults (by a name: the file and the fault); notes what came of each."""
        files = {file for file, *_ in chosen.values()}
        names = {name for file in files for name in self._tests_of(file)}
        tests = sorted({name.partition("::")[0] for name in names})
        called, threads = forked(lambda: self._import(tests), 300)
        called, later = {tuple(one) for one in called}, {}
        for name, (file, fault, *_) in chosen.items():
            if not threads and self._can_be_patched(file, fault, called):
                later[name] = file, fault
            else:
                note(name, self._try(file, fault, self._anew))
        if later:
            plugin = _Collected(lambda one: self._try_patched(one, later, note))
            status = run_pytest(self._package, ["-s", *tests], plugin)
            if status:
                sys.exit(f"pytest, with the tests collected: {status!s}")

    def _import(self, tests):
        """What importing the tests calls of the package; whether it starts threads."""
        before = len(os.listdir("/proc/self/task"))
        with CalledWhileImported(self._package) as called:
            run_pytest(self._package, ["--collect-only", *tests])
        started = len(os.listdir("/proc/self/task")) > before
        return sorted(called.found), started

    def _can_be_patched(self, file, fault, called):
        path = self._path(file)
        source = path.read_text()
        places = changed(source, fault.applied(source))
        return places is not None and not any((str(path), *p) in called for p in places)

    def _try_patched(self, session, chosen, note):
        patches = Patches(self._package)
        items = {item.nodeid: item for item in session.items}

        def look(names, path, *sources):
            patches.put(str(path), *sources)
            return _first_failed([items[one] for one in names])

        for name, (file, fault) in chosen.items():
            note(name, self._try(file, fault, look))

    def _path(self, file):
        return Path(self._package, file)

    def _try(self, file, fault, look):
        """What came of a fault; `look(tests, path, sources)` is run in a fork."""
        traces = self._tests_of(file)
        names, seconds = likely(traces, file, fault.lines, self._killed, self._budget)
        # Of a fixture that starts processes, the first test's seconds alone know.
        slack = 60 if any(traces[one]["apart"] for one in names) else 20
        limit = slack + 4 * seconds
        path, begun = self._path(file), time.monotonic()
        old = path.read_text()
        new = fault.applied(old)
        path.write_text(new)  # for processes that a test starts, too
        try:
            by = None
            if names:
                by = forked(lambda: look(names, path, old, new), limit)
        finally:
            path.write_text(old)
        self._killed[by] += 1
        return {
            "outcome": "killed" if by else "survived",
            "by": by,
            "tests": len(names),
            "seconds": round(time.monotonic() - begun, 1),
        }

    def _anew(self, names, *_):
        """The test that fails where all is imported anew, or what else went wrong."""
        plugin = InOrder(names)
        files = dict.fromkeys(name.partition("::")[0] for name in names)
        status = run_pytest(self._package, ["-x", "--tb=no", *files], plugin)
        return plugin.failed or (f"pytest: {status!s}" if status else None)


class _Collected:
    """A plugin of pytest that does something with the tests, rather than run them."""

    def __init__(self, work):
        self._work = work

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        self._work(session)
        return True


def _first_failed(items):
    """The first of these tests that fails; they run in the process that collected."""
    reports = InOrder(item.nodeid for item in items)
    hook = items[0].config.hook
    items[0].config.pluginmanager.register(reports)
    for item, following in zip(items, [*items[1:], None], strict=True):
        hook.pytest_runtest_protocol(item=item, nextitem=following)
        if reports.failed:
            break
    return reports.failed
