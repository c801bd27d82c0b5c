"""A bar for long work: on a terminal, after a while, and gone at the end."""

import sys

import pytest

from keras_bn.tools._reports import progress
from keras_bn.tools._reports.progress import Progress

pytestmark = pytest.mark.once


def _work(monkeypatch, terminal, patience):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(progress, "PATIENCE", patience)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("copying net", 4) as bar:
        for _ in range(4):
            bar.advance()


def test_long_work_on_a_terminal_shows_how_far_it_is(monkeypatch, capsys):
    _work(monkeypatch, terminal=True, patience=0.0)
    shown = capsys.readouterr()
    assert "copying net" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(("seconds", "shown"), [(1.99, False), (2.0, True)])
def test_two_seconds_are_waited(monkeypatch, capsys, seconds, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: 7.0)
    with Progress("copying net", 4) as bar:
        monkeypatch.setattr(progress.time, "monotonic", lambda: 7.0 + seconds)
        bar.advance()
        assert (bar._bar is not None) == shown
        if shown:
            (task,) = bar._bar.tasks
            assert (task.completed, task.total) == (1, 4)
    capsys.readouterr()


@pytest.mark.parametrize(("terminal", "patience"), [(False, 0.0), (True, 60.0)])
def test_short_work_and_files_get_no_bar(monkeypatch, capsys, terminal, patience):
    _work(monkeypatch, terminal, patience)
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_gone_after_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    bar = Progress("copying net", None)

    def fail():
        with bar:
            bar.advance()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not bar._bar.live.is_started
    capsys.readouterr()
