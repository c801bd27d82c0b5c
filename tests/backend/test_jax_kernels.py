"""The kernels on JAX: its transformations, and what XLA makes of them."""

import functools
import re

import keras
import numpy as np
import pytest
from test_kernels import axes_of

import cases
import keras_bn
from keras_bn.backend import jax_kernels, reference
from keras_bn.ops import batch_norm_inference, batch_norm_train
from slow import slow

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="looks into what JAX and XLA do"
)

MOVES = {"bitcast", "constant", "copy", "pad", "parameter", "reverse", "transpose"}


def strided_copies(text):
    """Of each fused computation that transposes, the operations in it."""
    computations = re.findall(r"^%\S+ \(.*?\n(.*?)^}", text, re.MULTILINE | re.DOTALL)
    return [
        set(re.findall(r"= \S+ ([\w-]+)\(", body))
        for body in computations
        if " transpose(" in body
    ]


def test_convolutions_read_outputs_and_gradients_as_they_are():
    import jax

    def loss(kernels, x):
        for kernel in kernels:
            x = keras.ops.conv(x, kernel, padding="same", data_format="channels_last")
            x, _ = batch_norm_train(x, activation="relu")
        return (x * x).sum()

    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(3, 3, 8, 8)).astype("float32") for _ in range(3)]
    x = rng.normal(size=(16, 16, 16, 8)).astype("float32")
    # As users have it, whatever the flags of the suite.
    options = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}
    compiled = jax.jit(jax.grad(loss)).lower(kernels, x).compile(options)
    copies = strided_copies(compiled.as_text())
    assert len(copies) >= 2 * len(kernels)  # of input and gradient, for each kernel
    # The first block's gradient has one reader, so that nothing is computed twice.
    assert sum(1 for operations in copies if operations - MOVES) <= 1


class Point:
    """Where a derivative is taken, along what, and the weights of a scalar loss."""

    def __init__(self, case, activation="sigmoid", mean=1.0):
        rng = np.random.default_rng(0)
        self.axes = axes_of(case)
        shape = self.axes.parameter_shape(case.shape)

        def normal(size, mean=0.0):
            return rng.normal(mean, 1, size).astype("float32")

        self.at = (normal(case.shape, mean), normal(shape, 1.0), normal(shape))
        self.along = (normal(case.shape), normal(shape), normal(shape))
        self.weights = normal(case.shape)
        self.activation = activation
        self.mask = None
        if case.mask is not None:
            self.mask = np.expand_dims(rng.random(case.mask) < 0.7, self.axes.features)

    def call(self, kernels):
        """`y` of x, scale and offset."""
        return lambda *inputs: kernels.train(
            *inputs, self.axes, 1e-3, self.mask, None, self.activation
        )[0]

    def loss(self, kernels):
        function = self.call(kernels)
        return lambda *inputs: (function(*inputs) * self.weights).sum()


def _jvp(point, kernels):
    import jax

    return jax.jvp(point.call(kernels), point.at, point.along)


def _jvp_of(i, point, kernels):
    """Along one of the inputs alone."""
    import jax

    def function(one):
        return point.call(kernels)(*point.at[:i], one, *point.at[i + 1 :])

    return jax.jvp(function, point.at[i : i + 1], point.along[i : i + 1])


def _linearize(point, kernels):
    import jax

    return jax.linearize(point.call(kernels), *point.at)[1](*point.along)


def _gradient(point, kernels):
    import jax

    return jax.grad(point.loss(kernels), (0, 1, 2))(*point.at)


def _jacfwd(point, kernels):
    import jax

    return jax.jacfwd(point.call(kernels), (1, 2))(*point.at)


def _hessian(point, kernels):
    import jax

    return jax.hessian(point.loss(kernels), (1, 2))(*point.at)


def _forward_over_reverse(point, kernels):
    import jax

    slopes = jax.grad(point.loss(kernels), (0, 1, 2))
    return jax.jvp(slopes, point.at, point.along)[1]


def _reverse_over_forward(point, kernels):
    import jax

    def loss(*inputs):
        _, tangent = jax.jvp(point.call(kernels), inputs, point.along)
        return (tangent * point.weights).sum()

    return jax.grad(loss, (0, 1, 2))(*point.at)


def _reverse_over_reverse(point, kernels):
    import jax

    def loss(*inputs):
        slopes = jax.grad(point.loss(kernels), (0, 1, 2))(*inputs)
        return sum((slope**2).sum() for slope in slopes)

    return jax.grad(loss, (0, 1, 2))(*point.at)


def _third(point, kernels):
    import jax

    def loss(*inputs):
        _, tangent = jax.jvp(jax.grad(point.loss(kernels)), inputs, point.along)
        return (tangent * point.weights).sum()

    return jax.grad(loss)(*point.at)


def _per_example_gradients(point, kernels):
    import jax

    x, scale, offset = point.at
    xs = np.stack([x, 2 * x + 1])
    slopes = jax.grad(point.loss(kernels), (0, 1, 2))
    return jax.vmap(slopes, (0, None, None))(xs, scale, offset)


def _gradients_of_weighted_losses(point, kernels):
    import jax

    _, pull_back = jax.vjp(point.call(kernels), *point.at)
    weights = np.stack([point.weights, 2 * point.weights + 1], -1)
    return jax.vmap(pull_back, -1)(weights)


def _gradient_of_a_batch_of_parameters(point, kernels):
    import jax

    x, scale, offset = point.at

    def loss(x, scales, offset):
        outputs = jax.vmap(point.call(kernels), (None, 0, None))(x, scales, offset)
        return (outputs * point.weights).sum()

    return jax.grad(loss, (0, 1, 2))(x, np.stack([scale, 2 * scale]), offset)


def _checkpointed(point, kernels):
    import jax

    return jax.grad(jax.checkpoint(point.loss(kernels)), (0, 1, 2))(*point.at)


def _scan(point, kernels):
    import jax

    def loss(x, scale, offset):
        def step(x, _):
            return point.call(kernels)(x, scale, offset), None

        return (jax.lax.scan(step, x, None, 3)[0] * point.weights).sum()

    return jax.grad(loss, (0, 1, 2))(*point.at)


def _while(point, kernels):
    import jax

    def loop(x, scale, offset):
        return jax.lax.while_loop(
            lambda carry: carry[0] < 3,
            lambda carry: (carry[0] + 1, point.call(kernels)(carry[1], scale, offset)),
            (0, x),
        )[1]

    return jax.jvp(loop, point.at, point.along)


def _cond(point, kernels):
    import jax

    def loss(*inputs):
        return jax.lax.cond(
            inputs[1].sum() < 1e9, point.loss(kernels), lambda x, *_: x.sum(), *inputs
        )

    return jax.grad(loss, (0, 1, 2))(*point.at)


TRANSFORMATIONS = {
    "jvp": _jvp,
    "jvp of x": functools.partial(_jvp_of, 0),
    "jvp of scale": functools.partial(_jvp_of, 1),
    "jvp of offset": functools.partial(_jvp_of, 2),
    "linearize": _linearize,
    "gradient": _gradient,
    "jacfwd": _jacfwd,
    "hessian": _hessian,
    "forward over reverse": _forward_over_reverse,
    "reverse over forward": _reverse_over_forward,
    "reverse over reverse": _reverse_over_reverse,
    "third": _third,
    "vmap of gradient": _per_example_gradients,
    "vmap of a vjp, last axis": _gradients_of_weighted_losses,
    "gradient of vmap": _gradient_of_a_batch_of_parameters,
    "checkpoint": _checkpointed,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
POINTS = {
    "image": Point(cases.SHAPES["image"]),
    "mask first": Point(cases.MASKS["mask_first_image"], activation=None),
    "two axes": Point(cases.SHAPES["two_axes"]),
    "large": Point(cases.Case((16, 16, 16, 5))),
    "large far from zero": Point(cases.Case((16, 16, 16, 5)), mean=50.0),
}


# Elsewhere the table of tests/test_transformations.py has the same, by the oracle; and
# two axes change shapes alone, which these look at most.
OF_SHAPES = {
    "jvp of scale",
    "gradient",
    "hessian",
    "vmap of gradient",
    "vmap of a vjp, last axis",
    "gradient of vmap",
}
ELSEWHERE = slow("compiles 70 derivatives in two ways each", witness="test_our_layer")


def quick(point, transform):
    if point == "two axes":
        return transform in OF_SHAPES
    return point == "large far from zero"


@pytest.mark.parametrize(
    ("point", "transform"),
    [
        pytest.param(
            *(POINTS[point], TRANSFORMATIONS[transform]),
            id=f"{point}-{transform}",
            marks=() if quick(point, transform) else ELSEWHERE,
        )
        for point in POINTS
        for transform in TRANSFORMATIONS
    ],
)
def test_transformations_are_those_of_the_plain_formulas(point, transform):
    import jax

    found, expected = (
        jax.tree.leaves(jax.jit(lambda: transform(point, kernels))())  # noqa: B023
        for kernels in (jax_kernels, reference)
    )
    assert len(found) == len(expected)
    far = 20 if np.mean(point.at[0]) > 10 else 1
    for one, other in zip(found, expected, strict=True):
        limit = far * 4e-6 * max(float(np.abs(other).max()), 1e-2)
        np.testing.assert_allclose(one, other, rtol=0, atol=limit)


def test_reverse_mode_of_a_tangent_along_several_for_one_of_them():
    import jax

    point = Point(cases.SHAPES["image"])

    def loss(t, kernels):
        along_x, *others = point.along
        along = (t * along_x, *others)
        _, tangent = jax.jvp(point.call(kernels), point.at, along)
        return (tangent * point.weights).sum()

    slope = jax.jit(jax.grad(loss), static_argnums=1)
    found, expected = (slope(2.0, kernels) for kernels in (jax_kernels, reference))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_forward_mode_along_a_residual():
    import jax

    x, residual, along = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("f4")
    y, tangent = jax.jvp(
        lambda one: batch_norm_train(x, residual=one, activation="relu")[0],
        *((residual,), (along,)),
    )
    np.testing.assert_array_equal(tangent, along * (y > 0))


@pytest.mark.parametrize("of", [(0,), (1,), (1, 2), (0, 1, 2)], ids=str)
def test_a_tangent_of_zeros_is_not_kept(of):
    import jax

    point = Point(cases.Case((16, 16, 16, 8)))

    def call(*moving):
        inputs = list(point.at)
        for i, one in zip(of, moving, strict=True):
            inputs[i] = one
        return point.call(jax_kernels)(*inputs)

    given = [point.at[i] for i in of]
    _, pull_back = jax.jit(lambda *inputs: jax.vjp(call, *inputs))(*given)
    kept = {id(one): one.nbytes for one in jax.tree.leaves(pull_back)}
    assert sum(kept.values()) <= point.at[0].nbytes * 1.01


SYMBOLIC = {
    "b, 4": -1,
    "b, h, h, 4": -1,
    "b, 4, h, h": 1,
    "b, 64, 64, 4": -1,  # more than any size that counts as small
}


@pytest.mark.parametrize(
    ("shape", "axis", "masked"),
    # With a mask, small and large go the same way.
    [
        *((*one, False) for one in SYMBOLIC.items()),
        *((shape, SYMBOLIC[shape], True) for shape in ("b, 4", "b, 4, h, h")),
    ],
)
def test_export_with_symbolic_sizes(shape, axis, masked):
    import jax
    from jax import export

    def step(x):
        def loss(x):
            mask = keras.ops.take(x, 0, axis=axis) > -1 if masked else None
            y, moments = batch_norm_train(x, axis=axis, mask=mask, activation="relu")
            return (y**3).sum(), moments

        return jax.value_and_grad(loss, has_aux=True)(x)

    symbols = export.symbolic_shape(shape)
    compiled = jax.jit(step)
    exported = export.export(compiled)(jax.ShapeDtypeStruct(symbols, "float32"))
    for batch in (1, 7):
        sizes = {"b": batch, "h": 5}
        concrete = [
            size if isinstance(size, int) else sizes[str(size)] for size in symbols
        ]
        x = np.random.default_rng(0).normal(1, 1, concrete).astype("float32")
        for one, other in zip(
            jax.tree.leaves(exported.call(x)), jax.tree.leaves(compiled(x)), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("training", [True, False])
def test_export_of_the_layer_with_a_symbolic_batch(training):
    import jax
    from jax import export

    layer = keras_bn.BatchNormalization()
    layer.build((None, 4))
    for i, weight in enumerate(layer.weights):
        weight.assign(np.linspace(1, 2, 4) + i)
    values = [[one.value for one in layer.trainable_variables]]
    values.append([one.value for one in layer.non_trainable_variables])

    def call(x):
        return layer.stateless_call(*values, x, training=training)[0]

    symbols = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4"), "float32")
    exported = export.export(jax.jit(call))(symbols)
    x = np.random.default_rng(0).normal(1, 1, (7, 4)).astype("float32")
    np.testing.assert_allclose(exported.call(x), call(x), atol=1e-6)


def test_one_program_for_all_platforms_is_right_on_this_one():
    import jax
    from jax import export

    slope = jax.jit(jax.grad(lambda x: (batch_norm_train(x)[0] ** 3).sum()))
    x = np.random.default_rng(0).normal(1, 1, (4, 32, 32, 8)).astype("float32")
    exported = export.export(slope, platforms=("cpu", "cuda", "tpu"))(x)
    np.testing.assert_allclose(exported.call(x), slope(x), atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_off_the_cpu_the_moments_are_those_of_the_definition(mean, monkeypatch):
    import jax

    def default_of(*arguments, default, **platforms):
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", default_of)
    x = np.random.default_rng(0).normal(mean, 1, (32, 16, 16, 8)).astype("float32")
    y, moments = batch_norm_train(x)
    wide = x.astype("float64")
    deviation = wide - wide.mean((0, 1, 2))
    variance = wide.var((0, 1, 2))
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(y, deviation / np.sqrt(variance + 1e-3), atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "stddev"),
    [(2.9, 1.0), (5.0, 1.0), (5.5, 1.0), (1.0, 0.01), (-290.0, 100.0)],
)
def test_plain_sums_are_taken_where_they_serve(mean, stddev):
    """E[x²] - mean² would lose more digits of these, but for the first and the last."""
    x = np.random.default_rng(1).normal(mean, stddev, (64, 32, 8)).astype("float32")
    _, moments = batch_norm_train(x)
    variance = x.astype("float64").var((0, 1))
    np.testing.assert_allclose(moments.variance, variance, rtol=2.5e-6)


def test_a_large_batch_of_one_value_is_all_zeros():
    y, moments = batch_norm_train(np.ones((64, 32, 8), "float32"))
    np.testing.assert_array_equal(y, np.zeros(y.shape))
    np.testing.assert_array_equal(moments.mean, np.ones(8))


OPTIONS = [{}, {"renorm": True}, {"accumulation_steps": 2}]


@pytest.mark.parametrize(
    ("axis", "activation", "options"),
    # Every pair of two: axes, activations and options know nothing of each other.
    [
        (axis, activation, OPTIONS[(i + k) % 3])
        for i, axis in enumerate((-1, 1, (1, 2)))
        for k, activation in enumerate((None, "relu", "selu", "gelu"))
    ],
)
def test_no_rank_is_promoted(axis, activation, options):
    import jax

    layer = keras_bn.BatchNormalization(axis=axis, activation=activation, **options)
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 3)).astype("float32")
    mask = np.ones((4, 3, 5)) > 0
    layer.build(x.shape)
    variables = layer.trainable_variables, layer.non_trainable_variables
    values = [[one.value for one in some] for some in variables]

    def call(x, training, **along):
        return layer.stateless_call(*values, x, training=training, **along)[0]

    def everything(x):
        slope = jax.grad(lambda x: call(x, True).sum())(x)
        return call(x, True, mask=mask), call(x, False), slope

    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(everything, x)  # ranks are told as they are traced


def test_no_rank_is_promoted_outside_of_a_trace():
    import jax

    layer = keras_bn.BatchNormalization()
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    with jax.numpy_rank_promotion("raise"):
        layer(x, training=True, mask=np.ones(5) > 0)
        layer(x)
        batch_norm_inference(np.ones((2, 3), "float32"), np.zeros(3), np.ones(3))


class Cell(keras.layers.Layer):
    """A recurrent cell with a norm in it, whose statistics may stay as they are."""

    state_size = 4

    def __init__(self, update=True, **kwargs):
        super().__init__(**kwargs)
        self.update = update
        self.dense = keras.layers.Dense(4)
        self.norm = keras_bn.BatchNormalization()

    def build(self, shape):
        self.dense.build((None, shape[-1] + 4))
        self.norm.build((None, 4))
        super().build(shape)

    def call(self, inputs, states, training=None):
        h = self.dense(keras.ops.concatenate([inputs, states[0]], -1))
        if self.update:
            h = self.norm(h, training=training)
        else:
            with keras_bn.no_update():
                h = self.norm(h, training=training)
        return h, [h]


SEQUENCE = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")


def test_a_loop_of_rnn_says_that_it_must_be_unrolled():
    # By the name of Keras's file, keras/src/backend/jax/rnn.py, in what JAX says of
    # the trace. Without it, statistics would stand still in silence.
    layer = keras.layers.RNN(Cell())
    layer.build(SEQUENCE.shape)
    with pytest.raises(
        ValueError, match=r"(?s)loop of `keras.layers.RNN`.*unroll=True"
    ):
        layer(SEQUENCE, training=True)
    mean = layer.cell.norm.moving_mean
    np.testing.assert_array_equal(mean, np.zeros(4))
    layer(SEQUENCE)  # inference is no matter


def test_a_loop_of_rnn_says_so_in_fit_too():
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.RNN(Cell())])
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"(?s)loop of `keras.layers.RNN`.*unroll=True"
    ):
        model.fit(SEQUENCE, np.zeros((8, 4)), verbose=0)


@pytest.mark.parametrize("options", [{"unroll": True}, {"unroll": False}])
def test_rnn_where_updates_can_get_out_or_there_are_none(options):
    layer = keras.layers.RNN(Cell(update=options["unroll"]), **options)
    layer(SEQUENCE, training=True)
    mean = np.asarray(layer.cell.norm.moving_mean)
    assert np.any(mean != 0) == options["unroll"]


def _by_vmap(function, x):
    import jax

    return jax.vmap(function)(x)


def _by_jit(function, x):
    import jax

    return jax.jit(function)(x[0])


def _by_scan(function, x):
    return keras.ops.scan(lambda carry, x: (carry, function(x)), 0.0, x)[1]


@pytest.mark.parametrize("way", [_by_vmap, _by_jit, _by_scan])
def test_a_trace_that_would_leak_says_what_to_do(way):
    layer = keras_bn.BatchNormalization()
    layer.build((None, 3))

    def call(x):
        return layer(x, training=True)

    with pytest.raises(ValueError, match=r"(?s)cannot be updated.*`stateless_call`"):
        way(call, SEQUENCE)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(3))

    def without_update(x):
        with keras_bn.no_update():
            return call(x)

    assert np.all(np.isfinite(way(without_update, SEQUENCE)))


def test_vmap_of_a_stateless_call_gives_statistics_of_each():
    import jax

    layer = keras_bn.BatchNormalization(momentum=0.0)
    layer.build((None, 3))
    values = [[one.value for one in layer.trainable_variables]]
    values.append([one.value for one in layer.non_trainable_variables])

    def call(x):
        return layer.stateless_call(*values, x, training=True)

    for function in (jax.vmap(call), jax.jit(jax.vmap(call))):
        _, (means, _) = function(SEQUENCE)
        np.testing.assert_allclose(means, SEQUENCE.mean(1), atol=1e-6)


def test_a_gradient_outside_of_jit_moves_the_statistics():
    import jax

    layer = keras_bn.BatchNormalization(momentum=0.0)
    layer.build((None, 3))
    jax.grad(lambda x: (layer(x, training=True) ** 2).sum())(SEQUENCE[0])
    np.testing.assert_allclose(layer.moving_mean, SEQUENCE[0].mean(0), atol=1e-6)


IMAGES = (64, 16, 16, 3)


def program_for_a_gpu(activation, dtype="float32"):
    """What XLA is given there for the gradients of x, gamma and beta."""
    import jax

    def loss(x, *parameters):
        y, _ = batch_norm_train(x, *parameters, activation=activation)
        return jax.numpy.sum(y * y)

    shapes = [(IMAGES, dtype), ((3,), "float32"), ((3,), "float32")]
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(
        *(jax.ShapeDtypeStruct(*one) for one in shapes)
    )
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_gpu_has_no_booleans_to_write_down(activation):
    """XLA for GPUs takes them for cheap, and keeps where an activation was at work."""
    program = program_for_a_gpu(activation)
    size = "x".join(map(str, IMAGES))
    assert f"tensor<{size}xf32>" in program
    assert f"tensor<{size}xi1>" not in program
    # x is read again for the sums, and once more for its gradient.
    assert program.count("optimization_barrier") == 2


@pytest.mark.parametrize(
    ("activation", "dtype", "again"),
    [("tanh", "float32", 1), ("relu", "bfloat16", 1), (None, "float32", 0)],
)
def test_what_the_forward_pass_read_serves_a_gpu_s_sums(activation, dtype, again):
    """So no kernel computes the activation twice; half precision is right as it is."""
    program = program_for_a_gpu(activation, dtype)
    assert program.count("optimization_barrier") == again
