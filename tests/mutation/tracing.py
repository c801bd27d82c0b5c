"""Which lines of the package each test runs, and how long it takes."""

import difflib
import hashlib
import json
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from mutation.processes import ROOT, forked, run_pytest


class Tracer:
    """A plugin of pytest that notes, of each test, its lines and its time.

    Tests `apart` are those of which a trace does not see all: they start processes, or
    a compiler makes new code of what they run.
    """

    def __init__(self, package):
        self._package = f"{package}{os.sep}"
        self._lines, self._apart, self._seen, self._bad = {}, False, {}, {}
        self._shared = {}
        sys.addaudithook(self._hear)

    def results(self):
        """The notes on the tests that passed, and the names of those that failed."""
        failed = [name for name, how in self._bad.items() if how == "failed"]
        passed = {n: one for n, one in self._seen.items() if n not in self._bad}
        return {"tests": passed, "failed": failed}

    def _hear(self, event, arguments):
        if event in ("subprocess.Popen", "os.posix_spawn", "code.__new__") or (
            event == "open" and "__autograph_generated" in str(arguments[0])
        ):
            self._apart = True

    def _enter(self, frame, event, argument):
        name = frame.f_code.co_filename
        # What an import runs is not of the test that happens to be the first.
        if not name.startswith(self._package) or frame.f_code.co_name == "<module>":
            return None
        lines = self._lines.setdefault(name.removeprefix(self._package), set())

        def step(frame, event, argument):
            lines.add(frame.f_lineno)
            return step

        return step(frame, event, argument)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Keeps what a fixture runs: all tests that share it hang on that."""
        outside, self._lines, self._apart = (self._lines, self._apart), {}, False
        try:
            return (yield)
        finally:
            self._shared[fixturedef.argname] = self._lines, self._apart
            self._lines, self._apart = outside

    def _add_fixtures(self, names):
        for name in names:
            lines, apart = self._shared.get(name, ({}, False))
            self._apart |= apart
            for file, found in lines.items():
                self._lines.setdefault(file, set()).update(found)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Traces one test, with its fixtures."""
        self._lines, self._apart, start = {}, False, os.times()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._add_fixtures(getattr(item, "fixturenames", ()))
            spent = [b - a for a, b in zip(start, os.times(), strict=True)]
            self._seen[item.nodeid] = {
                "seconds": round(sum(spent[:4]), 3),  # with those of its processes
                "apart": self._apart,
                "lines": {name: sorted(lines) for name, lines in self._lines.items()},
            }

    def pytest_runtest_logreport(self, report):
        """Notes what did not pass."""
        if not report.passed:
            self._bad[report.nodeid] = report.outcome


class Traces:
    """The traces of tests, kept in a file, and made anew for a test file that changed.

    A file with the tables of cases that it takes.

    Lines of a source that has changed since are followed to where they are now.
    """

    def __init__(self, path, package):
        self._path, self._package = path, package
        kept = json.loads(path.read_text()) if path.exists() else {}
        self._files = kept.get("files", {})
        self._sources = {
            str(one.relative_to(package)): one.read_text()
            for one in sorted(Path(package).rglob("*.py"))
        }
        for name, old in kept.get("sources", {}).items():
            if self._sources.get(name, "") != old:
                self._follow(name, old, self._sources.get(name, ""))

    def _follow(self, name, old, new):
        matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines())
        moved = {
            before + i + 1: after + i + 1
            for before, after, size in matcher.get_matching_blocks()
            for i in range(size)
        }
        for file in self._files.values():
            for test in file["tests"].values():
                lines = test["lines"].get(name, [])
                test["lines"][name] = [moved[one] for one in lines if one in moved]

    def of(self, paths):
        """The traces of the tests in these files and folders, by a test's name."""
        found = {}
        for path in map(ROOT.joinpath, paths):
            for file in sorted(path.rglob("test_*.py")) if path.is_dir() else [path]:
                found |= self._of_file(str(file.relative_to(ROOT)))
        return found

    def _of_file(self, name):
        source = (ROOT / name).read_text()
        for table in re.findall(r"^from (cases\w*) import", source, re.MULTILINE):
            source += (ROOT / f"tests/{table}.py").read_text()
        seal = hashlib.sha256(source.encode()).hexdigest()
        if self._files.get(name, {}).get("seal") != seal:
            print(f"tracing {name}", flush=True)
            traced = forked(lambda: self._trace(name), 900)
            if isinstance(traced, str):
                sys.exit(f"the trace of {name} was ended by {traced}")
            for one in traced["failed"]:
                print(f"  left out, since it fails: {one}", flush=True)
            self._files[name] = {"seal": seal, "tests": traced["tests"]}
            kept = {"sources": self._sources, "files": self._files}
            self._path.write_text(json.dumps(kept))
        return self._files[name]["tests"]

    def _trace(self, name):
        tracer = Tracer(self._package)
        run_pytest(self._package, ["--tb=short", name], tracer)
        return tracer.results()


def likely(traces, file, lines, killed, budget):
    """The tests that may see a fault in these lines, likeliest for their time first.

    Those that run them; where none does (they are run as the module is imported), those
    that run some of the file, or all, where it holds data alone; then those apart. They
    take `budget` seconds at most.

    Args:
        killed: How many faults each test has found so far.
    """
    first, last = lines
    touching = {name: one for name, one in traces.items() if one["lines"].get(file)}
    running = {
        name
        for name, one in touching.items()
        if any(first <= line <= last for line in one["lines"][file])
    }
    running = running or set(touching) or set(traces)
    apart = {name for name, one in traces.items() if one["apart"]} - running

    def cost(name):
        return traces[name]["seconds"] / (1 + killed[name])

    chosen, seconds = [], 0.0
    for name in (*sorted(running, key=cost), *sorted(apart, key=cost)):
        if seconds + traces[name]["seconds"] <= budget:
            chosen.append(name)
            seconds += traces[name]["seconds"]
    return chosen, seconds


class InOrder:
    """A plugin of pytest that runs these tests only, in this order."""

    def __init__(self, names):
        self._place = {name: place for place, name in enumerate(names)}
        self.failed = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Leaves out all others."""
        items[:] = [one for one in items if one.nodeid in self._place]
        items.sort(key=lambda one: self._place[one.nodeid])

    def pytest_runtest_logreport(self, report):
        """Notes the first that fails."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid
