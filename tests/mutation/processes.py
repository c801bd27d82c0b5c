"""Work in forked processes, and pytest on a copy of the package."""

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def forked(work, seconds):
    """What `work()` returns, in a process of its own; a text of what ended it if not.

    It is stopped when it has computed for so many seconds, or waited for four times as
    many, and so are all processes that it has started.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer"), Path(folder, "log")
        child = os.fork()
        if not child:
            _run(work, seconds, answer, log)
        killed_by = _wait(child, time.monotonic() + 4 * seconds)
        if answer.exists():
            return json.loads(answer.read_text())
        if killed_by in (signal.SIGXCPU, signal.SIGKILL):
            return "timeout"
        if os.environ.get("MUTATE_DEBUG"):
            print(log.read_text()[-4000:])
        return signal.Signals(killed_by).name if killed_by else "an exception"


def _run(work, seconds, answer, log):
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        output = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        answer.write_text(json.dumps(work()))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)  # what was set up before the fork is not this one's to end


def _wait(child, end):
    """The signal that ended the child, or 0."""
    try:
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.WTERMSIG(status)
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what it has started, and left


def run_pytest(package, arguments, plugin):
    """Runs pytest on the package in that folder, which processes of tests find too."""
    os.chdir(ROOT)
    paths = [ROOT / "examples", ROOT / "tests", package]
    os.environ["PYTHONPATH"] = str(package)
    os.environ["PYTHONSAFEPATH"] = "1"  # not the package in the working directory
    # A file of bytecode goes by the size and the second of its source, which two faults
    # may share.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    found = f"pythonpath={' '.join(map(str, paths))}"
    # hypothesis, a plugin, has been imported before the fork.
    ignored = "ignore::pytest.PytestAssertRewriteWarning"
    quick = ["-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow"]
    options = [*quick, "-W", ignored, "-o", found]
    return pytest.main([*options, *arguments], plugins=[plugin])
