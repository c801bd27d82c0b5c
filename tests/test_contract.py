"""What the README promises, one by one: kept by our layer in every way of running it.

The table of promises is in `promises.py`. Keras's own layer is held to it as well: it
breaks exactly those that the table says it does, with the error that the table says.

Freezing a layer (`trainable = False`) takes effect at once where the layer decides. In
a compiled model it is Keras's trainer that decides, and without another `compile()` it
does so differently on each backend (Keras 3.15.1, for our layer as for Keras's):

| backend | the next `train_on_batch` after `trainable = False` |
|---|---|
| TensorFlow | runs the function traced before: all weights and statistics keep moving |
| PyTorch | runs the layer anew: it stands still, as after `compile()` |
| JAX | raises: the optimizer was built for more variables; no weight changes |
"""

from contextlib import nullcontext

import keras
import numpy as np
import pytest

import cases
import frameworks
import keras_bn
import loops
import oracle
from promises import (
    PROMISES,
    assert_near,
    constant,
    normal,
    some,
    statistics,
)
from slow import slow

pytestmark = pytest.mark.filterwarnings(
    # torch.compile, of a cached function of Keras's, and of a module of its own.
    "ignore:Dynamo detected a call to a `functools.lru_cache`",
    "ignore:`torch.jit.script_method` is deprecated",
)

BACKEND = keras.backend.backend()


class Recorder(keras.layers.Layer):
    """Passes its input on, and keeps a copy that survives a compiled step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, shape):
        self.last = self.add_weight(shape=shape, trainable=False)
        # So that the model always has a weight to train.
        self.scale = self.add_weight(shape=())

    def call(self, inputs):
        self.last.assign(inputs)
        # Not a loss of Keras's: those cannot be taken of an empty batch.
        self.add_loss(keras.ops.sum(inputs * self.scale))
        return inputs


def in_train_on_batch(layer):
    """The layer in a compiled model, trained at learning rate 0, so weights stay."""
    models = {}

    def model_for(x, mask):
        inputs = [keras.Input(batch_shape=x.shape, dtype=str(x.dtype))]
        if mask is not None:
            inputs.append(keras.Input(batch_shape=mask.shape, dtype="bool"))
        recorder = Recorder(dtype=layer.compute_dtype)
        y = recorder(layer(inputs[0], mask=inputs[1] if mask is not None else None))
        model = keras.Model(inputs if len(inputs) > 1 else inputs[0], y)
        model.compile(keras.optimizers.SGD(0.0), loss=None)
        return model, recorder

    def train(x, mask=None):
        key = x.shape, mask is not None
        if key not in models:
            models[key] = model_for(x, mask)
        model, recorder = models[key]
        model.train_on_batch(x if mask is None else [x, mask])
        return frameworks.numpy(recorder.last.value)

    return train


WAYS = {
    **{
        way: lambda layer, way=way: loops.training_call(layer, way)
        for way in loops.WAYS
    },
    "train_on_batch": in_train_on_batch,
}

if BACKEND == "jax":
    # Keras's trainer compiles the very same call.
    del WAYS["compiled"]

# Numbers that go the way of another promise's: once plainly will do.
ALIKE = {
    *("mean_1e4_channels_first", "bfloat16_statistics_are_float32"),
    *("axis_1_and_a_mask_where_sizes_match", "one_channel_and_a_mask"),
    "an_infinity_in_the_batch",
}
# Where compilers take seconds for each: PyTorch's, to plain operators that are the same
# for all, and JAX's, to the program that the plain call has compiled of it already.
OF_EACH_KIND = {
    *("many_samples_channels_first", "axis_1_and_a_mask", "empty_batch"),
    *("a_nan_in_the_batch", "frozen"),
}
SECONDS = {("torch", "compiled"), ("jax", "train_on_batch")}
TRACED = slow("each is traced, in two or three ways", witness="test_our_layer_keeps")

LARGE_COMPILED = slow(
    "compiles for five seconds", witness="test_compiled_equals_oracle"
)


def marks(name, way):
    if (BACKEND, way) == (
        "torch",
        "compiled",
    ) and name == "many_samples_channels_first":
        return LARGE_COMPILED
    if (BACKEND, way) in SECONDS:
        return () if name in OF_EACH_KIND else TRACED
    return TRACED if name in ALIKE and way != "plain" else ()


RUNS = [
    pytest.param(name, way, marks=marks(name, way))
    for name, one in PROMISES.items()
    for way in WAYS
    if way == "plain" or not one.only_plain
]


# Of a NumPy array torch.compile asks NumPy, outside of its graphs, and then what the
# next one is given for a gradient that it has not.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("name", "way"), RUNS)
def test_our_layer_keeps(name, way):
    PROMISES[name].check(keras_bn.BatchNormalization, WAYS[way])


def keras_layer(name):
    PROMISES[name].check(keras.layers.BatchNormalization, WAYS["plain"])


# NumPy warns of NaN; JAX, where it is asked for float64, that it gives float32.
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore:Explicitly requested dtype"
)
@pytest.mark.parametrize(
    "name", [name for name, one in PROMISES.items() if BACKEND in one.broken]
)
def test_kerass_layer_breaks(name):
    error, match = PROMISES[name].broken[BACKEND]
    with pytest.raises(error, match=match):
        keras_layer(name)


@pytest.mark.parametrize(
    "name", [name for name, one in PROMISES.items() if BACKEND not in one.broken]
)
def test_kerass_layer_keeps(name):
    keras_layer(name)


POLICIES = {
    # policy: output, gamma and beta, moving statistics
    "float32": ("float32", "float32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16", "float32"),
    "float16": ("float16", "float16", "float32"),
    "mixed_bfloat16": ("bfloat16", "float32", "float32"),
    "mixed_float16": ("float16", "float32", "float32"),
    "float64": ("float64", "float64", "float64"),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("renorm", "training"), [(False, False), (True, True)])
@pytest.mark.parametrize(("policy", "dtypes"), POLICIES.items(), ids=POLICIES)
def test_dtypes_under_a_policy(policy, dtypes, renorm, training):
    layer = keras_bn.BatchNormalization(dtype=policy, renorm=renorm)
    y = layer(normal((8, 3)), training=training)
    expected = {
        **dict.fromkeys(("gamma", "beta"), dtypes[1]),
        **dict.fromkeys(statistics(layer), dtypes[2]),
    }
    assert keras.backend.standardize_dtype(y.dtype) == dtypes[0]
    assert {weight.name: weight.dtype for weight in layer.weights} == expected


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("policy", POLICIES)
@cases.parametrize({name: cases.ALL[name] for name in ("mask_first_image",)})
def test_layer_equals_oracle_under_a_policy(case, policy):
    check_layer(case, policy)


# Every shape is in ops/test_batch_norm.py: here each way to say axes, and each mask.
BY_THE_LAYER = (
    *("dense", "image", "first_volume", "negative_first", "middle", "list_of_one"),
    *("two_axes", "two_axes_apart", "mask_dense", "mask_broadcast", "mask_first"),
    *("mask_one_channel", "mask_keras_on_first", "mask_keras_two_axes"),
)


@cases.parametrize({name: cases.ALL[name] for name in BY_THE_LAYER})
def test_layer_equals_oracle(case):
    check_layer(case, "float32")


def check_layer(case, policy):
    layer = keras_bn.BatchNormalization(axis=case.axis, dtype=policy)
    x = frameworks.tensor(normal(case.shape, 3, 2), layer.compute_dtype)
    mask = None if case.mask is None else some(case.mask)
    y = loops.training_call(layer, loops.QUICKEST)(x, mask)
    exact = frameworks.numpy(x)
    weight = oracle.weights(mask, exact, case.axis, case.drop)
    expected = oracle.forward(exact, axis=case.axis, weight=weight)
    allowed = oracle.tolerance(exact, expected.variance, dtype=layer.compute_dtype)
    rounding = np.vectorize(oracle.ulp)(np.abs(expected.y), layer.compute_dtype)
    assert_near("the output", y, expected.y, allowed + rounding)
    for name, value, start in (
        ("moving_mean", expected.mean, 0.0),
        ("moving_variance", expected.variance, 1.0),
    ):
        got = statistics(layer)[name]
        average = np.reshape(start * 0.99 + value * 0.01, got.shape)
        assert_near(name, got, average, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "policy", "training"),
    # Each pair of two: what is made of an integer is decided before anything else.
    [
        *(("bool", "float32", True), ("bool", "bfloat16", False)),
        *(("uint8", "float32", False), ("uint8", "bfloat16", True)),
        *(("int32", "float32", True), ("int32", "bfloat16", False)),
        *(("int64", "float32", False), ("int64", "bfloat16", True)),
        *(("bool", "float64", True), ("uint8", "float64", False)),
        *(("int32", "float64", False), ("int64", "float64", True)),
    ],
)
@pytest.mark.usefixtures("float64")
def test_integers_are_taken_as_keras_takes_them(dtype, policy, training):
    x = (np.arange(24).reshape(8, 3) % 7).astype(dtype)
    ours = keras_bn.BatchNormalization(dtype=policy)
    theirs = keras.layers.BatchNormalization(dtype=policy)
    y, expected = (layer(x, training=training) for layer in (ours, theirs))
    assert keras.backend.standardize_dtype(y.dtype) == keras.backend.standardize_dtype(
        expected.dtype
    )
    allowed = 2 * max(1e-5, oracle.ulp(1.0, ours.compute_dtype))
    assert_near("the output", frameworks.numpy(y), frameworks.numpy(expected), allowed)


LAYOUTS = {
    "channels_last": (-1, (None, None, 3), [(4, 5, 6, 3), (2, 3, 2, 3)]),
    "channels_first": (1, (3, None, None), [(4, 3, 5, 6), (2, 3, 3, 2)]),
}


@pytest.mark.parametrize(("axis", "unknown", "shapes"), LAYOUTS.values(), ids=LAYOUTS)
def test_unknown_batch_and_spatial_sizes(axis, unknown, shapes):
    inputs = keras.Input(unknown)
    layer = keras_bn.BatchNormalization(axis=axis)
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    assert model.output_shape == (None, *unknown)
    mean = np.zeros(3)
    for seed, shape in enumerate(shapes):
        x = normal(shape, mean=5, seed=seed)
        model.train_on_batch(x, x)
        batch = oracle.forward(x, axis=axis).mean.ravel()
        mean = 0.99 * mean + 0.01 * batch
        assert_near("moving_mean", statistics(layer)["moving_mean"], mean, 1e-6)


def test_regularizers_and_constraints_in_a_training_step():
    layer = keras_bn.BatchNormalization(
        gamma_initializer=constant(2.0),
        beta_initializer=constant(0.5),
        gamma_regularizer=keras.regularizers.L2(0.25),
        beta_regularizer=keras.regularizers.L1(8.0),
        gamma_constraint=keras.constraints.MaxNorm(1.7),
        beta_constraint="non_neg",
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(0.1), loss=lambda y, prediction: 0 * prediction)
    loss = model.train_on_batch(normal((8, 1)), np.zeros((8, 1), "float32"))
    assert loss == pytest.approx(0.25 * 2.0**2 + 8.0 * 0.5)
    # gamma: 2 - 0.1 * (2 * 0.25 * 2) = 1.9, limited to 1.7. beta: 0.5 - 0.8, to 0.
    assert_near("gamma", frameworks.numpy(layer.gamma.value), [1.7], 1e-5)
    assert_near("beta", frameworks.numpy(layer.beta.value), [0.0], 0.0)


def step(model):
    model.train_on_batch(normal((8, 3), mean=3), np.ones((8, 1), "float32"))


def weights(model):
    return {
        w.path.rsplit("/")[-1]: frameworks.numpy(w.value).copy() for w in model.weights
    }


def changed(before, model):
    after = weights(model)
    return {name for name in before if not np.array_equal(before[name], after[name])}


STATE = {"gamma", "beta", "moving_mean", "moving_variance"}
FROZEN = {
    "tensorflow": ({"kernel", "bias", *STATE}, None),
    "torch": ({"kernel", "bias"}, None),
    "jax": (set(), "optimizer was built with 4 variables"),
}


@pytest.fixture
def model():
    """A compiled model that has trained one step; its first layer is ours."""
    layers = [keras_bn.BatchNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    step(model)
    return model


def test_all_weights_move_before_freezing(model):
    before = weights(model)
    step(model)
    assert changed(before, model) == {"kernel", "bias", *STATE}


def test_frozen_and_compiled_again(model):
    model.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = weights(model)
    step(model)
    assert changed(before, model) == {"kernel", "bias"}


def test_frozen_without_compiling_again(model):
    model.layers[0].trainable = False
    before = weights(model)
    moved, error = FROZEN[BACKEND]
    with pytest.raises(ValueError, match=error) if error else nullcontext():
        step(model)
    assert changed(before, model) == moved


def test_thawed_and_compiled_again(model):
    model.layers[0].trainable = False
    model.layers[0].trainable = True
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = weights(model)
    step(model)
    assert changed(before, model) == {"kernel", "bias", *STATE}


def renormalized(batches, epsilon, momentum, renorm_momentum, rmin, rmax, dmax):
    """Batch renormalization in float64, from the paper: outputs and statistics."""
    mean, stddev = np.zeros(3), np.ones(3)
    seen = {"moving_mean": mean, "moving_stddev": stddev}
    seen |= {"renorm_mean": mean, "renorm_stddev": stddev}
    outputs = []
    for x in batches:
        x = np.asarray(x, "float64")
        mean, stddev = x.mean(0), np.sqrt(x.var(0) + epsilon)
        r = np.clip(stddev / seen["renorm_stddev"], rmin, rmax)
        d = np.clip((mean - seen["renorm_mean"]) / seen["renorm_stddev"], -dmax, dmax)
        outputs.append((x - mean) / stddev * r + d)
        for name, value in seen.items():
            keep = momentum if name.startswith("moving") else renorm_momentum
            batch = mean if name.endswith("mean") else stddev
            seen[name] = value * keep + batch * (1 - keep)
    return outputs, seen | {"moving_variance": seen["moving_stddev"] ** 2 - epsilon}


CLIPPING = {
    "none": {},
    "rmax": {"rmax": 1.5},
    "rmin": {"rmin": 1.2},
    "dmax": {"dmax": 0.5},
    "all": {"rmax": 1.1, "rmin": 0.9, "dmax": 0.1},
}


@pytest.mark.parametrize("clipping", CLIPPING.values(), ids=CLIPPING)
def test_renorm_is_as_defined(clipping):
    batches = [
        normal((16, 3), mean=m, std=s, seed=m) for m, s in ((3, 2), (4, 1), (5, 3))
    ]
    layer = keras_bn.BatchNormalization(
        momentum=0.9,
        epsilon=1e-2,
        renorm=True,
        renorm_clipping=clipping,
        renorm_momentum=0.7,
    )
    train = loops.training_call(layer, loops.QUICKEST)
    outputs = [train(x) for x in batches]
    limits = {"rmin": 0.0, "rmax": np.inf, "dmax": np.inf} | clipping
    expected, seen = renormalized(batches, 1e-2, 0.9, 0.7, **limits)
    assert_near("the outputs", outputs, expected, 5e-5)
    got = statistics(layer)
    assert sorted(got) == sorted(seen)
    order = sorted(seen)
    assert_near(
        "the statistics", [got[n] for n in order], [seen[n] for n in order], 1e-5
    )


UNUSABLE = {
    "nan": ([np.nan] * 3, None),
    "infinity": ([np.inf] * 3, None),
    "all masked": ([1.0] * 3, False),
}


@pytest.mark.parametrize(("row", "mask"), UNUSABLE.values(), ids=UNUSABLE)
def test_renorm_statistics_keep_their_last_finite_values(row, mask):
    layer = keras_bn.BatchNormalization(renorm=True)
    train = loops.training_call(layer, loops.QUICKEST)
    train(normal((8, 3), mean=3), np.ones(8, bool))
    before = statistics(layer)
    x = normal((8, 3))
    x[2] = row
    train(x, np.ones(8, bool) if mask is None else np.full(8, mask))
    np.testing.assert_equal(statistics(layer), before)


def test_renorm_statistics_stay_at_an_empty_batch():
    layer = keras_bn.BatchNormalization(renorm=True)
    layer(normal((8, 3), mean=3), training=True)
    before = statistics(layer)
    assert tuple(layer(normal((0, 3)), training=True).shape) == (0, 3)
    np.testing.assert_equal(statistics(layer), before)


@pytest.mark.parametrize("renorm", [False, True])
def test_keras_file_gives_the_same_layer(renorm, tmp_path):
    layer = keras_bn.BatchNormalization(momentum=0.7, renorm=renorm)
    model = keras.Sequential([keras.Input((3,)), layer])
    x = normal((8, 3), mean=3)
    layer(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_equal(statistics(loaded.layers[0]), statistics(layer))
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    # It goes on averaging with the momentum that was saved: 0.7 is the share kept.
    before = statistics(layer)["moving_mean"]
    loaded.layers[0](x, training=True)
    expected = 0.7 * before + 0.3 * x.mean(0)
    got = statistics(loaded.layers[0])["moving_mean"]
    assert_near("moving_mean", got, expected, 1e-6)
