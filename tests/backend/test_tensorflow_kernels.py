"""TensorFlow's own: devices, traces, accumulators, vectorization, ragged tensors."""

import functools
import itertools

import keras
import numpy as np
import pytest

import frameworks
import oracle
from keras_bn import BatchNormalization
from keras_bn.backend import activations, kernels, reference
from keras_bn.backend.interface import Axes
from keras_bn.ops import batch_norm_inference, batch_norm_train
from slow import slow

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow alone has these", allow_module_level=True)

import tensorflow as tf

from keras_bn.backend import tensorflow_parts

LAST = Axes((3,), (0, 1, 2))
SMALL, LARGE, LARGEST = (4, 3, 5, 8), (8, 16, 16, 8), (8, 48, 48, 8)
# Each call below and above the size from which on it takes fused operators.
CALLS = pytest.mark.parametrize(
    ("call", "shape"),
    [
        *(("training", SMALL), ("training", LARGE)),
        *(("inference", SMALL), ("inference", LARGEST)),
    ],
    ids=["training", "training, large", "inference", "inference, large"],
)
# Never wanted where a GPU, or XLA, runs the step: an operator that means something else
# there, one that may round to ten bits, and conditions that the host waits for.
ON_CPU_ALONE = {"FusedBatchNormGradV3", "BatchMatMulV2", "If", "StatelessIf"}


def normal(shape, mean=0.0, std=1.0, seed=0):
    values = np.random.default_rng(seed).normal(mean, std, shape)
    return tf.constant(values, "float32")


def slopes(x, dy, activation=None):
    """The gradients for x and gamma of a training call."""
    gamma = tf.ones(x.shape[-1:])
    with tf.GradientTape() as tape:
        tape.watch([x, gamma])
        y, _ = batch_norm_train(x, gamma, activation=activation)
    return tape.gradient(y, [x, gamma], dy)


def assert_the_oracles(found, x, dy):
    expected = oracle.backward(x.numpy(), dy.numpy())
    for one, other in zip(found, (expected.x, expected.gamma.ravel()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.max(np.abs(other)))


@pytest.fixture
def gradient_of_a_gpu(monkeypatch):
    """The operator as it is on a GPU, where it takes 1 / sqrt(variance + epsilon)."""
    operator = tf.raw_ops.FusedBatchNormGradV3

    def as_on_gpu(*, reserve_space_2, epsilon, **others):
        variance = 1 / reserve_space_2**2 - epsilon
        return operator(reserve_space_2=variance, epsilon=epsilon, **others)

    monkeypatch.setattr(tf.raw_ops, "FusedBatchNormGradV3", as_on_gpu)


@pytest.mark.usefixtures("gradient_of_a_gpu")
@pytest.mark.parametrize("std", [0.1, 3.0])
def test_gradients_on_a_gpu(std, monkeypatch):
    """Eagerly: where operators are placed is known as they run."""
    monkeypatch.setattr(
        tf.raw_ops, "DeviceIndex", lambda device_names: tf.constant(len(device_names))
    )
    x, dy = normal(LARGE, std=std), normal(LARGE, seed=1)
    assert_the_oracles(slopes(x, dy), x, dy)


def placed_elsewhere(concrete):
    """A trace of a function, run by a device that is not the CPU of its `DeviceIndex`.

    No other is at hand. So the CPU that runs it is made one that is not on the list.
    """
    graph = concrete.graph.as_graph_def()
    functions = (function.node_def for function in graph.library.function)
    nodes = [node for nodes in (graph.node, *functions) for node in nodes]
    indices = [node for node in nodes if node.op == "DeviceIndex"]
    assert indices
    for node in indices:
        assert list(node.attr["device_names"].list.s) == [b"CPU"]
        node.attr["device_names"].list.s[:] = [b"TPU"]
    inputs = [tensor.name for tensor in concrete.inputs]
    outputs = [tensor.name for tensor in concrete.outputs]
    return tf.compat.v1.wrap_function(
        lambda *values: tf.import_graph_def(
            graph, dict(zip(inputs, values, strict=True)), outputs
        ),
        [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in concrete.inputs],
    )


@pytest.mark.usefixtures("gradient_of_a_gpu")
@pytest.mark.parametrize("std", [0.1, 3.0])
def test_gradients_of_a_trace_that_a_gpu_runs(std):
    """Traced where no GPU is, and placed on one later, by a SavedModel say."""
    x, dy = normal(LARGE, std=std), normal(LARGE, seed=1)
    trace = tf.function(slopes).get_concrete_function(x, dy)
    assert_the_oracles(placed_elsewhere(trace)(x, dy), x, dy)


def branches(trace):
    """The names of functions that a CPU runs, and of those that other devices run."""
    graph = trace.graph.as_graph_def()
    library = {one.signature.name: one.node_def for one in graph.library.function}
    choices = [node for node in graph.node if node.op in ("Case", "StatelessCase")]
    assert len(choices) == 3  # moments, output, gradients
    assert all(node.input[0].startswith("DeviceIndex") for node in choices)
    names = [[one.name for one in node.attr["branches"].list.func] for node in choices]
    on_cpu, elsewhere = zip(*names, strict=True)
    # What is in no branch runs everywhere.
    return [library[name] for name in on_cpu], [
        graph.node,
        *(library[name] for name in elsewhere),
    ]


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_what_is_for_a_cpu_alone_is_pinned_to_one(activation):
    x = normal(LARGE)
    trace = tf.function(slopes).get_concrete_function(x, x, activation)
    on_cpu, elsewhere = branches(trace)
    assert not ON_CPU_ALONE & {node.op for nodes in elsewhere for node in nodes}
    placed = [node for nodes in on_cpu for node in nodes if node.op in ON_CPU_ALONE]
    assert {node.op for node in placed} >= {"BatchMatMulV2", "StatelessIf"}
    assert all("CPU" in node.device for node in placed)


def test_xla_compiles_the_formulas():
    x, dy = normal(LARGE, 5.0), normal(LARGE, seed=1)
    compiled = tf.function(slopes, jit_compile=True)
    assert_the_oracles(compiled(x, dy), x, dy)
    graph = compiled.get_concrete_function(x, dy).graph.as_graph_def()
    nodes = [one.node_def for one in graph.library.function]
    operators = [node.op for nodes in (graph.node, *nodes) for node in nodes]
    assert not set(operators) & {
        *ON_CPU_ALONE,
        "Case",
        "StatelessCase",
        "EuclideanNorm",
    }
    # A sum of products XLA would take for a dot product: fifteen times as slow.
    # These are of squares, and of x - mean by the upstream gradient.
    assert operators.count("Maximum") == 2


def test_xla_compiles_what_was_traced_without_it():
    x, dy = normal(LARGE, 5.0), normal(LARGE, seed=1)
    traced = tf.function(slopes)
    assert_the_oracles(traced(x, dy), x, dy)
    outer = tf.function(lambda x, dy: traced(x, dy), jit_compile=True)
    assert_the_oracles(outer(x, dy), x, dy)


def test_without_a_tape_inference_is_plain_operators():
    """Of a gradient that is written out, exporters may make outputs of the model."""
    mean, variance = np.zeros(8), np.ones(8)
    trace = tf.function(lambda x: batch_norm_inference(x, mean, variance))
    graph = trace.get_concrete_function(normal(SMALL)).graph.as_graph_def()
    assert "IdentityN" not in {node.op for node in graph.node}


def test_plain_operators_take_half_precision():
    function = tf.function(
        lambda x: batch_norm_inference(x, np.zeros(8), np.ones(8), axis=1)
    )
    x = tf.cast(normal((4, 8, 3)), "bfloat16")
    np.testing.assert_allclose(tf.cast(function(x), "float32"), x, atol=2**-6)


@pytest.mark.parametrize("name", sorted(activations.SLOPES))
def test_gradients_of_activations_by_one_operator(name):
    z, dy = normal((4, 8), std=3.0), normal((4, 8), seed=1)
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = keras.activations.get(name)(z)
    found = tensorflow_parts._activation_gradient(name, dy, z)
    np.testing.assert_allclose(found, tape.gradient(y, z, dy), atol=1e-6)


class Pushed:
    """Inputs of both calls, a direction to push them, and an upstream gradient."""

    def __init__(self, shape):
        channels = shape[-1:]
        self.inputs = [
            *(normal(shape, 2.0), normal(channels, 1.0, 0.5, 1), normal(channels)),
            *(normal(channels, 2.0, 0.5), tf.exp(normal(channels, seed=4))),
        ]
        self.along = [normal(one.shape, seed=5) for one in self.inputs]
        self.dy = normal(shape, seed=6)

    def output(self, kernels, call, x, scale, offset, mean, variance):
        if call == "training":
            return kernels.train(x, scale, offset, LAST, 1e-3, None, None, "tanh")[0]
        parameters = mean, variance, scale, offset
        return kernels.inference(x, *parameters, LAST, 1e-3, "tanh")

    def forward(self, function):
        with tf.autodiff.ForwardAccumulator(self.inputs, self.along) as accumulator:
            y = function(*self.inputs)
        return [accumulator.jvp(y)]

    def forward_over_reverse(self, function):
        with tf.autodiff.ForwardAccumulator(self.inputs, self.along) as accumulator:
            found = self.reverse(function)
        return [accumulator.jvp(one, "zero") for one in found]

    def reverse_over_forward(self, function):
        return self.reverse(lambda *inputs: self.forward(function)[0])

    def reverse_thrice(self, function):
        def once(*inputs):
            return tf.add_n([tf.reduce_sum(s * s) for s in self.reverse(function)])

        def twice(*inputs):
            return tf.add_n([tf.reduce_sum(s * s) for s in self.reverse(once)])

        return self.reverse(twice)

    def reverse(self, function):
        with tf.GradientTape() as tape:
            tape.watch(self.inputs)
            y = function(*self.inputs)
            loss = tf.reduce_sum(tf.sin(y) * self.dy) if y.shape.rank else y
        return tape.gradient(loss, self.inputs, unconnected_gradients="zero")


ORDERS = "forward", "forward_over_reverse", "reverse_over_forward", "reverse_thrice"
WAYS = "eagerly", "within a function", "of a function"
# Every order in every way where there are graphs in graphs; elsewhere each pair of two.
DERIVATIVES = [
    *itertools.product(ORDERS, WAYS, ["training"], [LARGE]),
    *(
        (order, WAYS[(i + k) % 3], *call)
        for i, order in enumerate(ORDERS)
        for k, call in enumerate(
            [("training", SMALL), ("inference", SMALL), ("inference", LARGEST)]
        )
    ),
]
EAGERLY = slow("traces every operator of every shape", witness="test_our_layer")
WITHIN = slow(
    "traces as much as that of a function", witness="test_derivatives_of_every_kind"
)


def marks(order, way, call, shape):
    if way == "eagerly":
        return EAGERLY
    in_both_ways = (call, shape) == ("training", LARGE) and order != ORDERS[2]
    return WITHIN if in_both_ways and way == "within a function" else ()


@functools.cache
def expected_derivative(order, call, shape):
    pushed = Pushed(shape)
    reference_call = functools.partial(pushed.output, reference, call)
    return getattr(pushed, order)(reference_call)


@pytest.mark.parametrize(
    ("order", "way", "call", "shape"),
    [
        pytest.param(*row, marks=marks(*row))
        for row in DERIVATIVES
        # TensorFlow gives None there, of x * x too.
        if row[:2] != (ORDERS[2], "of a function")
    ],
    ids=str,
)
def test_derivatives_of_every_kind(order, way, call, shape):
    pushed = Pushed(shape)
    derivative = getattr(pushed, order)

    def function(*inputs):
        return pushed.output(kernels(), call, *inputs)

    if way == "eagerly":
        found = derivative(function)
    elif way == "of a function":
        found = derivative(tf.function(function))
    else:
        found = tf.function(lambda: derivative(function))()
    expected = expected_derivative(order, call, shape)
    limit = 2e-4 if order != "reverse_thrice" else 4e-3  # of sums of many squares
    most = max(np.max(np.abs(one)) for one in expected)
    for one, other in zip(found, expected, strict=True):
        size = max(np.max(np.abs(other)), 1e-3 * most)
        np.testing.assert_allclose(one, other, atol=limit * size)


@CALLS
def test_vectorized_over_inputs_and_parameters(call, shape):
    pushed = Pushed(shape)
    x, *parameters = pushed.inputs
    many = [tf.stack([one, 2 * one, one * one]) for one in (x, *parameters)]

    def output(kernels):
        return lambda inputs: pushed.output(kernels, call, *inputs)

    found = tf.vectorized_map(output(kernels()), many, fallback_to_while_loop=False)
    for i, one in enumerate(found):
        expected = output(reference)([tensor[i] for tensor in many])
        np.testing.assert_allclose(one, expected, atol=1e-4)


def test_vectorized_in_half_precision():
    """The parameters, which differ, stay in float32."""
    many = [tf.exp(normal((3, *shape))) for shape in (SMALL, *[(8,)] * 4)]
    many[0] = tf.cast(many[0], "bfloat16")
    found = tf.vectorized_map(
        lambda one: batch_norm_inference(*one), many, fallback_to_while_loop=False
    )
    expected = [batch_norm_inference(*one) for one in zip(*many, strict=True)]
    assert found.dtype == tf.bfloat16
    np.testing.assert_allclose(
        *(tf.cast(y, "float32") for y in (found, expected)), 2**-6
    )


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_jacobian(shape):
    pushed = Pushed(shape)

    def jacobian(kernels):
        x, scale, *others = pushed.inputs
        with tf.GradientTape() as tape:
            tape.watch(scale)
            y = pushed.output(kernels, "training", x, scale, *others)
            sums = tf.reduce_sum(y * pushed.dy, (0, 1, 2))
        return tape.jacobian(sums, scale)

    expected = jacobian(reference)
    size = np.max(np.abs(expected))
    np.testing.assert_allclose(jacobian(kernels()), expected, atol=1e-4 * size)


@pytest.mark.parametrize("axis", [0, -1])
def test_vectorized_norms_of_others(axis):
    """Ours is along axis 1 alone; the converter is for whoever takes one."""
    x = normal((3, 4, 5))
    found = tf.vectorized_map(
        lambda one: tf.math.reduce_euclidean_norm(one, axis),
        x,
        fallback_to_while_loop=False,
    )
    expected = np.linalg.norm(x, axis=1 if axis == 0 else axis)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_vectorized_fused_operators_of_others():
    """Training, and channels first, ours never are: as TensorFlow converts them."""

    def fused(x, parameter, layout="NHWC", training=True):
        given = () if training else parameter
        return tf.raw_ops.FusedBatchNormV3(
            **{"x": x, "scale": parameter, "offset": parameter},
            **{"mean": given, "variance": given},
            **{"data_format": layout, "is_training": training},
        ).y

    def vectorized(*arguments):
        return tf.vectorized_map(
            lambda one: fused(*one, *arguments), each, fallback_to_while_loop=False
        )

    each = normal((2, 4, 8, 5, 8), 2.0), tf.exp(normal((2, 8)))
    for found, *given in zip(vectorized(), *each, strict=True):
        np.testing.assert_allclose(found, fused(*given), atol=1e-5)
    with pytest.raises(ValueError, match="expected to be loop invariant"):
        vectorized("NCHW", False)


def test_vectorized_with_the_same_parameters():
    """By the fused operator, as it is called and once for all."""
    x, channels = normal((3, *SMALL)), tf.ones(SMALL[-1:])

    def vectorized(x):
        return tf.vectorized_map(
            lambda one: batch_norm_inference(one, channels, channels), x
        )

    trace = tf.function(vectorized, autograph=False).get_concrete_function(x)
    operators = [node.op for node in trace.graph.as_graph_def().node]
    assert operators.count("FusedBatchNormV3") == 2


def test_a_mean_far_from_zero_beside_a_large_spread():
    x, dy = normal(LARGE, 1e4, 10.0), normal(LARGE, seed=1)
    assert_the_oracles(slopes(x, dy), x, dy)


@pytest.mark.parametrize("mean", [0.0, 5.0])
@pytest.mark.parametrize("shape", [LARGE, LARGEST])
def test_gradients_are_of_the_dtype_of_the_input(mean, shape):
    x = tf.cast(normal(shape, mean), "bfloat16")
    slope, _ = slopes(x, x)
    assert slope.dtype == x.dtype


def test_variables_for_inputs():
    layer, x = BatchNormalization(), tf.Variable(normal(SMALL))
    given = {
        "weights": tf.Variable(tf.reshape(tf.range(1.0, 5.0), (4, 1, 1))),
        "residual": tf.Variable(normal(SMALL, seed=1)),
    }
    variables = [x, *given.values()]
    with tf.GradientTape() as tape:
        y = layer(x, training=True, **given)
    found = tape.gradient(y, variables, y)
    tensors = [tf.convert_to_tensor(one) for one in variables]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        again = layer(
            tensors[0], training=True, weights=tensors[1], residual=tensors[2]
        )
    np.testing.assert_array_equal(y, again)
    for one, other in zip(found, tape.gradient(again, tensors, again), strict=True):
        np.testing.assert_array_equal(one, other)


@CALLS
def test_all_sizes_unknown(call, shape):
    """But that of the channels, which `ops` sets from the weights."""
    pushed = Pushed(shape)
    x, *parameters = pushed.inputs

    def run(x, dy, kernels):
        with tf.GradientTape() as tape:
            tape.watch([x, *parameters])
            known = kernels.ensure_shape(x, (None, None, None, shape[-1]))
            y = pushed.output(kernels, call, known, *parameters)
        sources = [x, *parameters[: 2 if call == "training" else 4]]
        return y, *tape.gradient(y, sources, dy)

    unknown = tf.TensorSpec((None,) * 4, "float32")
    trace = tf.function(
        lambda x, dy: run(x, dy, kernels()), input_signature=[unknown] * 2
    )
    expected = run(x, pushed.dy, reference)
    for one, other in zip(trace(x, pushed.dy), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.max(np.abs(other)))


def test_ensure_shape():
    known = tf.function(lambda x: kernels().ensure_shape(x, (None, 3)))
    trace = known.get_concrete_function(tf.TensorSpec((None, None), "float32"))
    assert trace.output_shapes == (None, 3)


@pytest.mark.parametrize(
    "run",
    [functools.partial(tf.function, autograph=False), lambda call: call],
    ids=["of a function", "eagerly"],
)
def test_a_gradient_in_slices(run):
    """What reads a part of the output has a gradient for that part."""
    x, part = normal((6, 3), 1.0), normal((2, 3), seed=1)

    @run
    def slope():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, _ = batch_norm_train(x)
            read = tf.gather(y, [1, 4])
        return tape.gradient(read, x, part)

    dy = np.zeros((6, 3))
    dy[[1, 4]] = part
    np.testing.assert_allclose(slope(), oracle.backward(x.numpy(), dy).x, atol=1e-5)


@pytest.mark.parametrize(
    "run",
    [functools.partial(tf.function, autograph=False), lambda call: call],
    ids=["of a function", "eagerly"],
)
def test_a_gradient_of_the_gradient_for_weights(run):
    x, dy, weights = normal((4, 5, 3)), normal((4, 5, 3), seed=1), normal((4, 5, 1))
    weights = tf.exp(weights)

    def slope(kernels):
        with tf.GradientTape() as outer:
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(weights)
                given = x, tf.ones(3), tf.zeros(3), Axes((2,), (0, 1)), 1e-3, weights
                y, _ = kernels.train(*given, None, "tanh")
            first = inner.gradient(y, weights, dy)
            total = tf.reduce_sum(first * first)
        return outer.gradient(total, weights)

    expected = slope(reference)
    found = run(lambda: slope(kernels()))()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", ["mask", "weights"])
def test_a_mask_of_the_graph_around_a_branch(name):
    """In which the gradient of the branch does not look for it."""
    x, dy, counts = normal((4, 3)), normal((4, 3), seed=1), np.array([1.0, 0, 1, 1])

    @tf.function
    def either(x, counts):
        given = {name: tf.cast(counts, "bool" if name == "mask" else "float32")}
        return tf.cond(
            tf.reduce_any(counts > 0),
            lambda: batch_norm_train(x, **given)[0],
            lambda: x,
        )

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = either(x, counts)
    weight = oracle.weights(counts, x.numpy(), -1)
    expected = oracle.backward(x.numpy(), dy.numpy(), weight=weight).x
    np.testing.assert_allclose(tape.gradient(y, x, dy), expected, atol=1e-5)


def ragged(values, lengths=(3, 1, 0, 4)):
    return tf.RaggedTensor.from_row_lengths(values, lengths)


def test_ragged_inputs_are_their_values():
    x, dy = normal((8, 3), 2.0), normal((8, 3), seed=1)
    layer = BatchNormalization()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(ragged(x), training=True)
    assert isinstance(y, tf.RaggedTensor)
    np.testing.assert_array_equal(y.row_lengths(), (3, 1, 0, 4))
    expected = oracle.forward(x.numpy())
    np.testing.assert_allclose(y.flat_values, expected.y, atol=1e-5)
    slope = tape.gradient(y.flat_values, x, dy)
    expected_slope = oracle.backward(x.numpy(), dy.numpy()).x
    np.testing.assert_allclose(slope, expected_slope, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.01 * expected.mean[0], atol=1e-6)
    np.testing.assert_allclose(
        layer(ragged(x)).flat_values,
        oracle.inference(x.numpy(), *map(frameworks.numpy, layer.weights[2:])),
        atol=1e-5,
    )


def test_ragged_inputs_equal_keras_own_layer():
    x = ragged(normal((8, 3), 2.0))
    ours, keras_own = BatchNormalization(), keras.layers.BatchNormalization()
    for training in (True, False):
        one, other = (layer(x, training=training) for layer in (ours, keras_own))
        np.testing.assert_allclose(one.flat_values, other.flat_values, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bool", "float32"])
def test_ragged_mask(dtype):
    values, mask = normal((8, 3), 2.0), (np.arange(8) % 3 > 0).astype(dtype)
    y, moments = batch_norm_train(ragged(values), mask=ragged(mask))
    expected = oracle.forward(
        values.numpy(), weight=oracle.weights(mask, values.numpy(), -1)
    )
    np.testing.assert_allclose(y.flat_values, expected.y, atol=1e-5)
    np.testing.assert_allclose(moments.mean, expected.mean[0], atol=1e-6)


def test_ragged_inputs_that_have_no_statistics():
    x = ragged(normal((8, 3)))
    with pytest.raises(ValueError, match="`mask` must be ragged as the inputs are"):
        batch_norm_train(x, mask=tf.ones((4, 4), "bool"))
    several = tf.RaggedTensor.from_row_lengths(normal((8, 3, 2)), (3, 1, 0, 4))
    with pytest.raises(ValueError, match="`axis` must be one axis that is not ragged"):
        batch_norm_train(several, axis=(2, 3))
    with pytest.raises(ValueError, match="`axis` must be one axis that is not ragged"):
        batch_norm_inference(x, np.zeros(4), np.ones(4), axis=0)
    even = tf.RaggedTensor.from_uniform_row_length(normal((8, 3)), 2)
    with pytest.raises(ValueError, match="`axis` must be one axis that is not ragged"):
        batch_norm_inference(even, np.zeros(2), np.ones(2), axis=1)
