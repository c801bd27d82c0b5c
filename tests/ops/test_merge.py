"""Merged moments are those of all values together."""

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import frameworks
from keras_bn.ops import Moments, merge_moments


def moments(values):
    """The moments of rows of values; zeros where there are none."""
    count = np.float32(len(values))
    if not len(values):
        zeros = np.zeros(values.shape[1], "float32")
        return Moments(*map(keras.ops.convert_to_tensor, (count, zeros, zeros)))
    found = (count, values.mean(0), values.var(0))
    return Moments(
        *(keras.ops.convert_to_tensor(np.asarray(one, "float32")) for one in found)
    )


@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.floats(-100, 100),
    st.floats(0.1, 10),
    st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_of_two_parts(first, second, mean, stddev, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(mean, stddev, (first + second, 2))
    values[first:] += stddev
    merged = merge_moments(moments(values[:first]), moments(values[first:]))
    expected = moments(values)
    for received, wanted in zip(merged, expected, strict=True):
        received, wanted = frameworks.numpy(received), frameworks.numpy(wanted)
        # The means come rounded: their difference is known to a few of their ulps.
        allowed = 1e-5 * (1 + abs(mean) + stddev) * (1 + stddev)
        np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=allowed)


def test_of_nothing_is_nothing():
    empty = moments(np.zeros((0, 2)))
    for received in merge_moments(empty, empty):
        np.testing.assert_array_equal(frameworks.numpy(received), 0)
