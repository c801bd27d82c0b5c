"""From which size on TensorFlow's fused operators serve, and its smallest batches."""

import functools

import keras
import numpy as np
import pytest

import frameworks
import oracle
from keras_bn.backend import kernels, reference
from keras_bn.backend.interface import Axes
from keras_bn.ops import batch_norm_inference, batch_norm_train

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow alone has these", allow_module_level=True)

import tensorflow as tf

CHANNELS = 64


def training(x):
    return batch_norm_train(x)[0]


def inference(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        return batch_norm_inference(x, np.zeros(CHANNELS), np.ones(CHANNELS))


def operators(function, *shape):
    """What a function is made of, branches and all, for an input of that shape."""
    spec = tf.TensorSpec(shape, "float32")
    graph = tf.function(function).get_concrete_function(spec).graph.as_graph_def()
    inside = (one.node_def for one in graph.library.function)
    return {node.op for nodes in (graph.node, *inside) for node in nodes}


@pytest.mark.parametrize(
    ("call", "least", "batch"),
    [(training, 2**14, ()), (training, 2**14, (None,)), (inference, 2**17, ())],
    ids=["training", "training, of a sample", "inference"],
)
def test_fused_operators_from_the_size_on_that_is_told(call, least, batch):
    """`describe` says 16k and 131k elements; of a sample, where that is all we know."""
    positions = least // CHANNELS
    assert "FusedBatchNormV3" in operators(call, *batch, positions, CHANNELS)
    assert "FusedBatchNormV3" not in operators(call, *batch, positions - 1, CHANNELS)


@pytest.mark.parametrize(("positions", "served"), [(2**15, True), (16411, False)])
def test_more_values_than_add_up_exactly_are_cut_into_runs(positions, served):
    """A prime cannot be: the formulas add up otherwise."""
    assert ("FusedBatchNormV3" in operators(training, positions, 2)) == served


@pytest.mark.parametrize("samples", [0, 1])
def test_few_samples_of_many_values(samples):
    """Of a batch whose size is known as it runs: of none, no mean is a NaN."""
    x = np.random.default_rng(0).normal(3, 2, (samples, 2**14)).astype("float32")
    given = [frameworks.tensor(x), tf.ones(2**14), tf.zeros(2**14)]
    specs = [tf.TensorSpec((None, 2**14)), *map(tf.TensorSpec.from_tensor, given[1:])]

    def run(kernels, *tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y, moments = kernels.train(*tensors, Axes((1,), (0,)), 1e-3, *[None] * 3)
        return y, *moments, *tape.gradient(y, tensors, y + 1)

    def ours(*tensors):
        return run(kernels(), *tensors)

    for one, other in zip(
        tf.function(ours, input_signature=specs)(*given),
        run(reference, *given),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("xla", [False, True])
def test_a_residual_of_sizes_that_are_not_known_yet(xla):
    """As many samples as the inputs have; one is not added to each of them."""
    x, residual = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    signature = [tf.TensorSpec((None, 3))] * 2

    @functools.partial(tf.function, input_signature=signature, jit_compile=xla)
    def step(x, residual):
        with tf.GradientTape() as tape:
            tape.watch([x, residual])
            y, _ = batch_norm_train(x, residual=residual)
        return y, *tape.gradient(y, [x, residual], x)

    y, dx, along = step(x, residual)
    np.testing.assert_allclose(y, oracle.forward(x).y + residual, atol=1e-5)
    np.testing.assert_allclose(dx, oracle.backward(x, x).x, atol=1e-5)
    np.testing.assert_array_equal(along, x)
    with pytest.raises(tf.errors.InvalidArgumentError):
        step(x, residual[:1])


def test_eagerly_small_inputs_lose_no_digit_to_a_large_mean():
    """The mean is subtracted first, as `describe` says: x - mean is exact there."""
    x = np.random.default_rng(0).normal(1e5, 1, (4, 3, 5)).astype("float32")
    statistics = np.full(3, 1e5, "float32"), np.ones(3, "float32")
    found = batch_norm_inference(x, *statistics, axis=1)
    expected = oracle.inference(x, *statistics, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
