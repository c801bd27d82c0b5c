"""Rows by number: seen, they are checked; unseen, they are NaN out of range."""

import keras
import numpy as np
import pytest

import frameworks
from keras_bn.ops import _rows

TABLE = np.arange(6, dtype="float32").reshape(3, 2) + 1


def look_and_write(table, number):
    """The row of that number, and the table with 9 in its place."""
    number = _rows.row_number("number", number, 3)
    row = _rows.take_rows(table, number)
    return row, _rows.with_row(table, number, row * 0 + 9)


@pytest.mark.filterwarnings(
    # torch.compile, of a cached function of Keras's.
    "ignore:Dynamo detected a call to a `functools.lru_cache`"
)
def test_in_a_graph_that_is_traced_once():
    traces = []

    def traced(table, number):
        traces.append(1)
        return look_and_write(table, number)

    run = frameworks.compiled(traced)
    table = frameworks.tensor(TABLE)
    for number in (0, 2):
        row, written = run(table, frameworks.tensor(np.array(number, "int32")))
        np.testing.assert_array_equal(frameworks.numpy(row), TABLE[number])
        wanted = TABLE.copy()
        wanted[number] = 9
        np.testing.assert_array_equal(frameworks.numpy(written), wanted)
    for number in (3, -1):
        row, written = run(table, frameworks.tensor(np.array(number, "int32")))
        assert np.isnan(frameworks.numpy(row)).all()
        np.testing.assert_array_equal(frameworks.numpy(written), TABLE)
    # PyTorch repeats what the function did to the list when it was traced.
    assert len(traces) == (4 if keras.backend.backend() == "torch" else 1)


def test_of_a_graph_s_wide_integers_none_wraps(monkeypatch):
    """2 ** 32 is 0 in 32 bits. JAX has no wider integers, and has cut it before."""
    monkeypatch.setattr(_rows, "readable", lambda x: False)
    if keras.backend.backend() == "jax":
        pytest.skip("the number is 0 before anyone is asked")
    number = frameworks.tensor(np.array([1, 2**32]))
    rows = _rows.take_rows(
        frameworks.tensor(TABLE), _rows.row_number("number", number, 3)
    )
    np.testing.assert_array_equal(frameworks.numpy(rows), [TABLE[1], [np.nan] * 2])


def test_gradient_goes_to_the_rows_that_were_taken():
    numbers = frameworks.tensor(np.array([2, 0, 2, 7], "int32"))
    upstream = np.array([[1, 2], [3, 4], [5, 6], [0, 0]], "float32")

    def function(table):
        rows = _rows.take_rows(table, numbers)
        return keras.ops.where(keras.ops.isnan(rows), 0.0, rows), 0

    _, _, (slope,) = frameworks.gradients(
        function, [frameworks.tensor(TABLE)], frameworks.tensor(upstream)
    )
    np.testing.assert_array_equal(slope, [[3, 4], [0, 0], [6, 8]])


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="elsewhere it is nothing else"
)
def test_gradient_for_a_weight_is_no_list_of_rows():
    import tensorflow as tf

    weight = keras.Variable(TABLE)
    with tf.GradientTape() as tape:
        row = _rows.take_rows(weight.value, 1)
    assert isinstance(tape.gradient(row, weight.value), tf.Tensor)
