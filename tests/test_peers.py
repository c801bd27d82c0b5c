"""What docs/peers.md says of others shows; our layer is right where they are not."""

import json

import keras
import pytest

import frameworks
import peers


def key(row):
    return row["case"], row["library"], row["layer"]


def test_what_the_page_says_shows_and_nothing_else():
    recorded = json.loads(peers.RESULTS.read_text())
    # Haiku, Equinox and tf-keras are not among what the tests install; other versions
    # may have mended what these have not.
    now, then = peers.versions(), recorded["versions"]
    here = {
        one.name for one in peers.PEERS if now.get(one.package) == then[one.package]
    }
    expected, found = (
        sorted(key(row) for row in rows if row["layer"] in here)
        for rows in (recorded["shown"][keras.backend.backend()], peers.shown())
    )
    assert found == expected


@pytest.mark.once
def test_the_page_has_the_table():
    page = peers.PAGE.read_text()
    assert peers.filled(page) == page


def test_one_case_by_name(capsys):
    rows = peers.main(["momentum_2"])
    found = [(row["case"], row["library"], row["seen"]) for row in rows]
    # Keras refuses it since 3.16.
    expected = [("momentum_2", "Keras", "taken")] if frameworks.KERAS < (3, 16) else []
    assert found == expected
    assert ("momentum_2" in capsys.readouterr().out) == bool(expected)


@pytest.mark.once
def test_an_unknown_case(capsys):
    with pytest.raises(SystemExit):
        peers.main(["momentum_3"])
    assert "expected one of mean_1e4, " in capsys.readouterr().err
