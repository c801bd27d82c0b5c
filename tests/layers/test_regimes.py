"""When the moving statistics move: accumulation, freezing, recomputation, no_update."""

import functools

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from slow import slow

BACKEND = keras.backend.backend()
STATISTICS = ("moving_mean", "moving_variance")
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")
fitted = pytest.mark.parametrize(
    "eager",
    [
        pytest.param(False, id="compiled"),
        pytest.param(True, id="eager", marks=ON_TORCH),
    ],
)


def batches(count=6, size=8, seed=0):
    """Batches unlike each other, so that means of variances are not the variance."""
    rng = np.random.default_rng(seed)
    shift = np.arange(count).reshape(-1, 1, 1)
    return (rng.normal(size=(count, size, 3)) * 2 + shift).astype("float32")


def built(**settings):
    layer = keras_bn.BatchNormalization(momentum=0.5, **settings)
    layer.build((None, 3))
    return layer


def statistics(layer):
    return [frameworks.numpy(getattr(layer, name)) for name in STATISTICS]


def averaged(moments, momentum=0.5):
    """The moving statistics after these moments, from 0 and 1 on."""
    mean, variance = np.zeros(3), np.ones(3)
    for values in moments:
        mean = mean * momentum + values.mean(0) * (1 - momentum)
        variance = variance * momentum + values.var(0) * (1 - momentum)
    return [mean, variance]


def assert_statistics(layer, expected):
    for received, wanted in zip(statistics(layer), expected, strict=True):
        np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-6)


# Accumulation


def test_accumulation_moves_once_by_the_merged_moments():
    layer, x = built(accumulation_steps=3), batches(6)
    for batch in x:
        layer(batch, training=True)
    macro = x.astype("float64").reshape(2, 24, 3)
    assert_statistics(layer, averaged(macro))


def test_accumulation_leaves_statistics_until_the_last_batch():
    layer = built(accumulation_steps=3)
    before = statistics(layer)
    for batch in batches(2):
        layer(batch, training=True)
    for one, other in zip(statistics(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_accumulation_weighs_by_count():
    layer, x = built(accumulation_steps=2), batches(2)
    layer(x[0], training=True)
    layer(x[1, :3], training=True)
    whole = np.concatenate([x[0], x[1, :3]]).astype("float64")
    assert_statistics(layer, averaged([whole]))


def test_accumulation_leaves_out_a_batch_with_a_nan_in_its_channel():
    layer, x = built(accumulation_steps=2), batches(2)
    x[0, 0, 1] = np.nan
    for batch in x:
        layer(batch, training=True)
    whole = x.astype("float64").reshape(16, 3)
    mean, variance = averaged([whole])
    of_the_second = averaged([x[1].astype("float64")])
    mean[1], variance[1] = of_the_second[0][1], of_the_second[1][1]
    assert_statistics(layer, (mean, variance))


@pytest.mark.parametrize("settings", [{}, {"renorm": True}, {"zero_debias": True}])
def test_accumulation_of_nothing_leaves_statistics(settings):
    """Empty batches and spoilt ones count as steps, but an average takes in none."""
    layer, x = built(accumulation_steps=2, **settings), batches(3)
    before = values(layer)
    layer(x[0, :0], training=True)
    layer(np.full_like(x[0], np.nan), training=True)
    for name, value in values(layer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    layer(x[1], training=True)
    layer(x[2, :0], training=True)
    once = built(**settings)
    once(x[1], training=True)
    assert_statistics(layer, statistics(once))


def test_accumulation_normalizes_each_batch_by_itself():
    x = batches(1)[0]
    one, other = built(accumulation_steps=4), built()
    np.testing.assert_array_equal(
        frameworks.numpy(one(x, training=True)),
        frameworks.numpy(other(x, training=True)),
    )


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_accumulation_with_the_optimizers_own(eager):
    """Statistics and weights move in the same steps of `fit`."""
    x = batches(4).reshape(-1, 3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras_bn.BatchNormalization(momentum=0.5, accumulation_steps=2),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse", run_eagerly=eager)
    model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0)
    assert_statistics(model.layers[0], averaged(x.astype("float64").reshape(2, 16, 3)))


def test_accumulation_with_renorm_moves_renorm_statistics_once():
    layer, x = built(accumulation_steps=2, renorm=True, renorm_momentum=0.5), batches(2)
    for batch in x:
        layer(batch, training=True)
    whole = x.astype("float64").reshape(16, 3)
    np.testing.assert_allclose(
        frameworks.numpy(layer.renorm_mean), whole.mean(0) / 2, rtol=1e-5, atol=1e-6
    )


def test_accumulation_goes_on_after_saving(tmp_path):
    x = batches(2)
    model = keras.Sequential([keras.Input((3,)), built(accumulation_steps=2)])
    model(x[0], training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    again(x[1], training=True)
    assert_statistics(again.layers[0], averaged([x.astype("float64").reshape(16, 3)]))


def test_weights_without_accumulation_are_those_of_keras():
    theirs = keras.layers.BatchNormalization()
    theirs.build((None, 3))
    assert [w.name for w in built().weights] == [w.name for w in theirs.weights]


# Freezing


def trained(layer, steps=2, **settings):
    """`layer` between two dense ones, after `fit`."""
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3), layer, keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", **settings)
    x = batches(steps)
    model.fit(x.reshape(-1, 3), x.reshape(-1, 3)[:, :1], batch_size=8, verbose=0)
    return model


def moved(layer, before):
    after = {weight.name: frameworks.numpy(weight) for weight in layer.weights}
    return {name for name in after if np.any(after[name] != before[name])}


def values(layer):
    return {weight.name: frameworks.numpy(weight).copy() for weight in layer.weights}


@fitted
def test_frozen_statistics_let_gamma_and_beta_train(eager):
    layer = built(freeze_statistics=True)
    before = values(layer)
    trained(layer, run_eagerly=eager)
    assert moved(layer, before) == {"gamma", "beta"}


def test_frozen_statistics_are_what_training_normalizes_by():
    layer, x = built(freeze_statistics=True), batches(1)[0]
    np.testing.assert_array_equal(
        frameworks.numpy(layer(x, training=True)),
        frameworks.numpy(layer(x, training=False)),
    )


@ON_TORCH
def test_statistics_can_be_frozen_on_the_layer():
    layer = built()
    layer.freeze_statistics = True
    before = values(layer)
    trained(layer)
    assert moved(layer, before) == {"gamma", "beta"}


@ON_TORCH
def test_the_reverse_only_statistics_move():
    layer = built()
    layer.gamma.trainable = layer.beta.trainable = False
    before = values(layer)
    trained(layer)
    assert moved(layer, before) == set(STATISTICS)


@fitted
def test_frozen_before_compile_nothing_moves(eager):
    layer = built()
    layer.trainable = False
    before = values(layer)
    trained(layer, run_eagerly=eager)
    assert moved(layer, before) == set()


# One call that does not count


def test_no_update_leaves_the_statistics():
    layer, x = built(), batches(2)
    layer(x[0], training=True)
    before = statistics(layer)
    with keras_bn.no_update():
        y = layer(x[1], training=True)
    for one, other in zip(statistics(layer), before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        frameworks.numpy(y), frameworks.numpy(built()(x[1], training=True))
    )


def test_no_update_ends_where_its_block_ends_also_by_an_error():
    layer = built()
    with pytest.raises(KeyError), keras_bn.no_update():
        raise KeyError
    before = statistics(layer)
    layer(batches(1)[0], training=True)
    assert np.any(statistics(layer)[0] != before[0])


def test_no_update_counts_for_accumulation_too():
    layer, x = built(accumulation_steps=2), batches(3)
    layer(x[0], training=True)
    with keras_bn.no_update():
        layer(x[1], training=True)
    layer(x[2], training=True)
    assert_statistics(layer, averaged([x[[0, 2]].astype("float64").reshape(16, 3)]))


# Recomputation


class Block(keras.layers.Layer):
    """A norm between two dense layers, recomputed as one where `remat` is set.

    Without the second one PyTorch would stop recomputing before the norm's update.
    """

    def __init__(self, remat, **kwargs):
        super().__init__(**kwargs)
        self.remat = remat
        self.dense = keras.layers.Dense(3)
        self.norm = keras_bn.BatchNormalization(momentum=0.5)
        self.after = keras.layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)
        self.after.build(shape)

    def call(self, x, training=None):
        def both(x):
            return self.after(self.norm(self.dense(x), training=training))

        return keras.remat(both)(x) if self.remat else both(x)


def after_fit(middle, x, **settings):
    """The weights after a step, by name, of the layers that `middle` gives."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *middle(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse", **settings)
    model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0)
    return [frameworks.numpy(weight) for weight in model.weights]


MODES = {
    "full": {"mode": "full"},
    "larger_than": {"mode": "larger_than", "output_size_threshold": 1},
    "list_of_layers": {"mode": "list_of_layers", "layer_names": ["norm"]},
    "activations": {"mode": "activations"},
}


def norm():
    return keras_bn.BatchNormalization(momentum=0.5, activation="relu", name="norm")


@functools.cache
def without_remat(eager):
    x = batches(2).reshape(-1, 3)
    return after_fit(lambda: [keras.layers.Dense(3), norm()], x, run_eagerly=eager)


@pytest.mark.parametrize(
    ("mode", "eager"),
    # A mode says what is recomputed, and eager is how: each mode once will do.
    [
        *(("full", False), ("list_of_layers", False), ("full", True)),
        *(
            pytest.param(mode, eager, marks=ON_TORCH)
            for mode, eager in (
                *(("larger_than", False), ("activations", False)),
                ("activations", True),
            )
        ),
    ],
)
def test_remat_scope_around_the_layer(mode, eager):
    """Around this layer alone: TensorFlow's compiled `fit` recomputes no Dense."""

    def within():
        with keras.RematScope(**MODES[mode]):
            layer = norm()
        return [keras.layers.Dense(3), layer]

    received = after_fit(within, batches(2).reshape(-1, 3), run_eagerly=eager)
    for one, other in zip(received, without_remat(eager), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_remat_scope_around_keras_s_layer_is_what_the_readme_says():
    """Two moves of momentum 0.5 keep a quarter, and add three quarters of the mean."""
    x = batches(1)[0] + 5
    with keras.RematScope(mode="full"):
        layer = keras.layers.BatchNormalization(momentum=0.5)
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    if BACKEND == "jax":
        # Keras 3.16 builds it, and leaves a tracer in the moving mean.
        message = "Unable to automatically build|traced array"
        with pytest.raises((RuntimeError, TypeError), match=message):  # noqa: PT012
            model.fit(x, x[:, :1], batch_size=8, verbose=0)
            frameworks.numpy(layer.moving_mean)
        return
    model.fit(x, x[:, :1], batch_size=8, verbose=0)
    np.testing.assert_allclose(
        frameworks.numpy(layer.moving_mean), 0.75 * x.mean(0), rtol=1e-5
    )


@pytest.mark.parametrize("eager", [False, True], ids=["compiled", "eager"])
def test_recomputed_with_other_layers(eager):
    x = batches(2).reshape(-1, 3)
    if BACKEND == "jax":
        with pytest.raises(ValueError, match=r"cannot be updated inside `keras.remat`"):
            after_fit(lambda: [Block(True)], x, run_eagerly=eager)
        return
    received = after_fit(lambda: [Block(True)], x, run_eagerly=eager)
    expected = after_fit(lambda: [Block(False)], x, run_eagerly=eager)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(BACKEND != "jax", reason="the way that only JAX needs")
@pytest.mark.parametrize("given", [True, False], ids=["state given", "state around it"])
def test_jax_can_checkpoint_a_function_of_the_state(given):
    import jax

    layer, x = built(), batches(1)[0]
    weights = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def loss(weights, call):
        y, updated = call(weights, others, x, training=True)
        return (y**3).sum(), updated

    def plain(weights, others, x, training):
        return layer.stateless_call(weights, others, x, training=training)

    def checkpointed(weights, others, x, training):
        function = functools.partial(plain, training=training)
        if given:
            return jax.checkpoint(function)(weights, others, x)
        return jax.checkpoint(lambda weights: function(weights, others, x))(weights)

    wanted, expected = jax.grad(loss, has_aux=True)(weights, plain)
    slopes, updated = jax.jit(lambda w: jax.grad(loss, has_aux=True)(w, checkpointed))(
        weights
    )
    for one, other in zip([*slopes, *updated], [*wanted, *expected], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
