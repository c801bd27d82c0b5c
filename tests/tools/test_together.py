"""What processes find together, without processes: what each would send is known."""

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn.tools._statistics.moments import RunningMoments
from keras_bn.tools._statistics.run import Run
from keras_bn.tools._statistics.together import Found, agreed_order

pytestmark = pytest.mark.once


class Sent:
    """Stands for the processes: this one is the first, the others have sent rows."""

    def __init__(self, *rows):
        self._rows = rows

    def gather(self, row):
        return np.stack([row, *self._rows])


@pytest.fixture
def layers():
    found = {"one": keras_bn.BatchNormalization(), "two": keras_bn.BatchNormalization()}
    found["one"].build((None, 3))
    found["two"].build((None, 2))
    return found


def findings(layers, batches, paths):
    """What one process finds in batches, of the layers that it comes to."""
    found = Found(layers, {path: RunningMoments() for path in layers})
    for batch in batches:
        for path in paths:
            x = batch[:, : layers[path].moving_mean.shape[0]]
            found.see(path, len(x), x.mean(0), x.var(0))
        found.batches += 1
        found.samples += len(batch)
    return found


DATA = [
    1e3 + np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((2, 5))
]


def test_moments_and_counts_of_all(layers):
    mine = findings(layers, DATA[:1], ["one", "two"])
    sent = [
        findings(layers, DATA[1:], ["two", "one"])._row(None),
        findings(layers, [], [])._row(None),
    ]
    together = mine.together(Sent(*sent), None)
    assert (together.batches, together.samples) == (2, 7)
    assert list(together.reached) == ["one", "two"]
    for path, size in (("one", 3), ("two", 2)):
        x = np.concatenate(DATA)[:, :size]
        moments = together.moments[path]
        np.testing.assert_array_equal(moments.count, [7.0] * size)
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance, x.var(0), rtol=1e-6)


def test_what_no_process_reached_is_not_there(layers):
    mine = findings(layers, DATA[:1], ["two"])
    sent = findings(layers, DATA[1:], ["two"])._row(None)
    assert list(mine.together(Sent(sent), None).reached) == ["two"]


def test_a_failure_is_told_to_all(layers):
    found = findings(layers, DATA, ["one", "two"])
    failed = found._row(ValueError("mine"))
    with pytest.raises(ValueError, match="error in process 1, 2 of 3"):
        found.together(Sent(failed, failed), None)
    with pytest.raises(KeyError, match="mine"):
        found.together(Sent(found._row(None)), KeyError("mine"))


def test_parts_may_be_empty_but_not_all():
    model = keras.Sequential([keras.Input((3,)), keras_bn.BatchNormalization()])
    layers = {"one": model.layers[0]}

    def run(sent, data, steps=None):
        passes = Run(model, data, 2, steps, 0, Sent(sent._row(None)))
        return passes, passes.through(layers, {"one": RunningMoments()}, by_batch=True)

    other, nothing = (findings(layers, data, ["one"]) for data in (DATA[1:], []))
    passes, found = run(other, np.zeros((0, 3)))
    assert (passes.batches, passes.samples) == (1, 5)
    np.testing.assert_allclose(found["one"].mean, DATA[1].mean(0))
    passes, found = run(other, DATA[0].astype("float32"))
    assert (str(passes.batches), str(passes.samples)) == ("2", "7")
    np.testing.assert_allclose(found["one"].mean, np.concatenate(DATA).mean(0))
    for sent, steps in ((nothing, None), (other, 1)):
        with pytest.raises(ValueError, match=r"`data` must have (at least one|1) bat"):
            run(sent, np.zeros((0, 3)), steps)


def test_a_part_that_cannot_be_read_is_told_to_all():
    model = keras.Sequential([keras.Input((3,)), keras_bn.BatchNormalization()])
    sent, layers = [], {"one": model.layers[0]}

    def gone():
        yield DATA[0]
        raise OSError("gone")

    for method in (
        lambda run: run.order(layers),
        lambda run: run.through(layers, {"one": RunningMoments()}, by_batch=True),
    ):
        with pytest.raises(OSError, match="gone"):
            method(Run(model, gone(), 2, None, 0, Keeps(sent)))
    assert [row[0] for row in sent] == [1, 1]


def test_the_order_is_that_of_the_first_with_data(layers):
    def row(order, error=None):
        kept = []
        agreed_order(Keeps(kept), layers, order, error)
        return kept[0]

    nothing, order, other = row([]), row(["two", "one"]), row(["one", "two"])
    assert agreed_order(Sent(order, other), layers, [], None) == ["two", "one"]
    assert agreed_order(Sent(other), layers, ["two", "one"], None) == ["two", "one"]
    assert agreed_order(Sent(nothing), layers, [], None) == []
    assert agreed_order(Sent(order), layers, ["one"], None) == ["one"]
    with pytest.raises(KeyError, match="mine"):
        agreed_order(Sent(order), layers, [], KeyError("mine"))


class Keeps(Sent):
    """Notes the row that is sent."""

    def __init__(self, kept):
        super().__init__()
        self._kept = kept

    def gather(self, row):
        self._kept.append(row)
        return super().gather(row)
