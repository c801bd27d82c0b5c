"""Ghost batches: each group of samples against the oracle of a batch of its own."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import loops
import oracle
from keras_bn.ops.batch_norm import prepare
from keras_bn.ops.ghost_batches import train_ghost_batches

Norm = keras_bn.BatchNormalization


class Case(NamedTuple):
    """An input, how many samples a group has, and what else there is."""

    name: str
    shape: tuple
    size: int
    axis: int | tuple = -1
    mask: tuple | None = None
    drop: int | None = None
    activation: str | None = None
    mean: float = 1.0


CASES = [
    Case("dense, remainder", (11, 4), 4),
    Case("dense, one group", (4, 4), 4),
    Case("smaller than a group", (3, 4), 8),
    Case("image", (6, 3, 2, 4), 2, activation="relu"),
    Case("first, remainder", (5, 4, 3, 2), 2, axis=1, activation="swish"),
    Case("two axes", (7, 3, 2, 4), 3, axis=(1, 3)),
    Case("mask", (7, 5, 4), 3, mask=(7, 5)),
    Case("mask of one row", (7, 5, 4), 3, mask=(1, 5)),
    Case("mask, two axes", (7, 3, 2, 4), 3, axis=(1, 3), mask=(7, 3, 2), drop=-1),
    Case("mean 1e4", (9, 8, 4), 4, mean=1e4),
    # Where kernels think that it is worth their while.
    Case("large", (10, 32, 32, 8), 4, activation="relu"),
    Case("large, first", (9, 8, 32, 32), 4, axis=1),
]


def data(case):
    rng = np.random.default_rng(0)
    x = rng.normal(case.mean, 2, case.shape)
    x += 3 * np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1))  # unlike each other
    x = x.astype("float32")
    axes = oracle.features(case.axis, x.ndim)
    shape = [n if i in axes else 1 for i, n in enumerate(case.shape)]
    shape = shape if len(axes) > 1 else (max(shape),)
    gamma, beta = rng.uniform(0.5, 1.5, (2, *shape)).astype("float32")
    mask = None if case.mask is None else rng.random(case.mask) < 0.6
    if mask is not None and len(mask) > 1:
        mask[: case.size] = False  # a group without a value
    return x, gamma, beta, rng.normal(size=case.shape).astype("float32"), mask


def by_groups(case, x, mask):
    """The oracle's inputs, group by group."""
    weight = oracle.weights(mask, x, case.axis, drop=case.drop)
    for start in range(0, len(x), case.size):
        part = slice(start, start + case.size)
        yield part, weight[part]


def slope(name, y):
    """The activation's values and derivatives at y."""
    if name == "relu":
        return np.maximum(y, 0), (y > 0).astype("float64")
    if name == "swish":
        gate = 1 / (1 + np.exp(-y))
        return y * gate, gate * (1 + y * (1 - gate))
    return y, np.ones_like(y)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_group_is_a_batch(case):
    x, gamma, beta, dy, mask = data(case)

    def function(x, gamma, beta):
        given = prepare(x, case.axis)
        given_mask = given.counts(mask, None)
        return train_ghost_batches(
            *(given, gamma, beta, 1e-3, given_mask, case.size),
            *(keras.activations.get(case.activation), False),
        )

    tensors = [frameworks.tensor(one) for one in (x, gamma, beta)]
    y, moments, slopes = frameworks.gradients(function, tensors, frameworks.tensor(dy))
    y, (count, mean, variance), (dx, dgamma, dbeta) = (
        keras.tree.map_structure(frameworks.numpy, one)
        for one in (y, tuple(moments), tuple(slopes))
    )
    wide_gamma, wide_beta = (oracle.spread(p, x, case.axis) for p in (gamma, beta))
    sums = 0
    for part, weight in by_groups(case, x, mask):
        settings = {"axis": case.axis, "weight": weight}
        result = oracle.forward(x[part], wide_gamma, wide_beta, **settings)
        wanted, rate = slope(case.activation, result.y)
        allowed = oracle.tolerance(x[part], result.variance, wide_gamma)
        assert (np.abs(y[part] - wanted) <= 1.1 * allowed).all()
        wanted = oracle.backward(x[part], dy[part] * rate, wide_gamma, **settings)
        scale = np.abs(wanted.x).max() + 1
        far = 10 if case.mean > 1e3 else 1  # near a kink of relu there is none
        np.testing.assert_allclose(dx[part], wanted.x, atol=1e-4 * scale * far)
        sums = sums + np.stack([wanted.gamma, wanted.beta])
    scale = np.abs(sums).max() + 1
    np.testing.assert_allclose(dgamma.ravel(), sums[0].ravel(), atol=1e-4 * scale)
    np.testing.assert_allclose(dbeta.ravel(), sums[1].ravel(), atol=1e-4 * scale)
    weight = oracle.weights(mask, x, case.axis, drop=case.drop)
    whole = oracle.forward(x, axis=case.axis, weight=weight)
    np.testing.assert_array_equal(
        np.broadcast_to(count, mean.shape).ravel(), whole.count.ravel()
    )
    np.testing.assert_allclose(mean.ravel(), whole.mean.ravel(), rtol=1e-6)
    np.testing.assert_allclose(variance.ravel(), whole.variance.ravel(), rtol=1e-4)
    assert mean.shape == variance.shape == gamma.shape


def test_no_group_and_no_sample():
    layer = Norm(virtual_batch_size=4)
    layer.build((None, 3))
    assert layer(np.zeros((0, 3), "float32"), training=True).shape == (0, 3)
    np.testing.assert_array_equal(frameworks.numpy(layer.moving_mean), 0)


def images():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10, 4, 3)) * 2 + np.arange(10).reshape(-1, 1, 1)
    return x.astype("float32")


def test_the_layer_in_fit_and_in_a_file(tmp_path):
    """The batch is not known when the model is traced, and 3 does not divide it."""
    x = images()
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            Norm(virtual_batch_size=3, momentum=0.5, name="norm", axis=-1),
        ]
    )
    model.compile("sgd", "mse")
    model.fit(x, x, batch_size=7, epochs=1, shuffle=False, verbose=0)
    norm = model.layers[0]
    mean, variance = np.zeros(3), np.ones(3)
    for batch in (x[:7], x[7:]):
        batch = batch.astype("float64").reshape(-1, 3)
        mean = (mean + batch.mean(0)) / 2
        variance = (variance + batch.var(0)) / 2
    np.testing.assert_allclose(frameworks.numpy(norm.moving_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(
        frameworks.numpy(norm.moving_variance), variance, rtol=1e-5
    )
    # Inference is of the moving statistics alone, whatever the batch.
    wanted = oracle.inference(
        x,
        *(frameworks.numpy(w) for w in (norm.moving_mean, norm.moving_variance)),
        *(frameworks.numpy(w) for w in (norm.gamma, norm.beta)),
    )
    np.testing.assert_allclose(
        model.predict(x, batch_size=10, verbose=0), wanted, atol=1e-4
    )
    # What was built says what it was made of: tf-keras 2 moved the axis.
    config = norm.get_config()
    assert (config["axis"], config["virtual_batch_size"]) == (-1, 3)
    assert "virtual_batch_size" not in Norm().get_config()
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.layers[0].get_config() == config
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    with pytest.raises(ValueError, match=r"'norm' .* no argument `virtual_batch_size`"):
        keras_bn.convert(model, to="keras")
    plain = keras_bn.convert(model, virtual_batch_size=None)
    theirs = keras_bn.convert(plain, to="keras")
    np.testing.assert_allclose(
        theirs.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="others know each call's sizes"
)
def test_a_traced_batch_of_unknown_size():
    layer = Norm(virtual_batch_size=4, momentum=0.0)
    layer.build((None, None, 3))
    call = frameworks.compiled(
        lambda x: layer(x, training=True), unknown=[(None, None, 3)]
    )
    for x in (images(), images()[:2], images()[:8, :1]):
        y = frameworks.numpy(call(frameworks.tensor(x)))
        for start in range(0, len(x), 4):
            part = x[start : start + 4]
            np.testing.assert_allclose(
                y[start : start + 4], oracle.forward(part).y, atol=1e-4
            )
        np.testing.assert_allclose(
            frameworks.numpy(layer.moving_variance), x.var((0, 1)), rtol=1e-4
        )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="ragged tensors are TensorFlow's"
)
def test_ragged_inputs_are_refused():
    import tensorflow as tf

    layer = Norm(virtual_batch_size=2)
    layer.build((None, None, 3))
    ragged = tf.ragged.constant([[[1.0] * 3], [[2.0] * 3] * 2], ragged_rank=1)
    with pytest.raises(ValueError, match=r"`virtual_batch_size` must be None for rag"):
        layer(ragged, training=True)


def test_accumulated_over_batches():
    layer, x = Norm(virtual_batch_size=3, accumulation_steps=2, momentum=0.0), images()
    call = loops.training_call(layer, loops.QUICKEST)
    call(x[:5])
    call(x[5:])
    np.testing.assert_allclose(
        frameworks.numpy(layer.moving_variance), x.var((0, 1)), rtol=1e-4
    )


def test_a_remainder_of_one_sample_is_told_of():
    layer = Norm(virtual_batch_size=3, name="norm")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        loops.training_call(layer, loops.QUICKEST)(images()[:, 0])
    told = [str(one.message) for one in caught if one.category is UserWarning]
    assert "'norm'" in told[0]
    assert "one sample per channel in a group (virtual_batch_size=3)" in told[0]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"virtual_batch_size": 0}, ValueError, r"`virtual_batch_size` must be .*=0"),
        (
            {"virtual_batch_size": 2.5},
            TypeError,
            r"`virtual_batch_size` must be an int",
        ),
        (
            {"virtual_batch_size": 4, "renorm": True},
            ValueError,
            r"`virtual_batch_size` and `renorm` cannot go together.*=4, renorm=True",
        ),
        (
            {"virtual_batch_size": 4, "axis": 0},
            ValueError,
            r"`virtual_batch_size` makes groups of samples.*=4, axis=0",
        ),
        (
            {"virtual_batch_size": 4, "axis": (-3, 2)},
            ValueError,
            r"`virtual_batch_size` makes groups of samples.*axis=\(-3, 2\)",
        ),
    ],
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        Norm(**settings).build((8, 4, 3))


@pytest.mark.parametrize("axis", [0, (0, 2)])
def test_samples_as_features_are_refused_at_once(axis):
    with pytest.raises(ValueError, match="`virtual_batch_size` makes groups of sam"):
        Norm(axis=axis, virtual_batch_size=4)


def test_moments_are_merged_over_replicas(monkeypatch):
    """Of two replicas with a half each, both in groups: they are the whole batch's."""
    x = np.random.default_rng(0).normal(3, 2, (12, 3)).astype("float32")
    x += np.arange(12, dtype="float32")[:, None]
    other = np.concatenate([[7], x[5:].mean(0), np.zeros(3), x[5:].var(0)])

    class Replicas:
        def gather(self, values):
            return keras.ops.stack([values, frameworks.tensor(other, "float32")])

    monkeypatch.setattr("keras_bn.ops.ghost_batches.replicas", lambda *_: Replicas())
    layer = Norm(virtual_batch_size=3, synchronized=True, momentum=0.0)
    layer(x[:5], training=True)
    mean, variance = map(frameworks.numpy, layer.non_trainable_variables)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)
