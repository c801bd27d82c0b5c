"""`fold`: the same outputs with fewer layers, and a reason where a layer stays."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_copies import Unclear
from cases_fold import BEYOND, FOLDS, GRAPHS
from cases_tools import images, layers_in, numpy, randomize, weights_of
from slow import slow

L = keras.layers
_COMPILED = keras.backend.backend() == "jax"
pytestmark = pytest.mark.usefixtures("cheap_initial_weights")

# `fold` knows layers, and no backend, but counts on it that a layer computes the same
# on each: one row of each kind that a backend has an operator of its own for.
QUICK = {
    *("conv1d causal", "groups", "depthwise2d", "separable2d", "transpose2d"),
    *("same average after", "upsampling, bilinear", "padding by the border"),
    *("resizing", "group norm"),
}
ON_TORCH = slow("100 graphs, each of which JAX compiles for itself", but_on="torch")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else ON_TORCH)
        for case in (*FOLDS, *BEYOND, *GRAPHS)
    ],
)
def test_outputs_agree_and_counts_are_as_stated(case):
    keras.utils.clear_session(free_memory=False)
    model = randomize(_built(case))
    before = weights_of(model)
    folded, report = keras_bn.fold(model, explain=True)
    x = images(3, *case.shape)
    assert len(report.folded) == case.folded
    assert len(report.left) == len(case.left)
    assert all(
        why in row.reason for why, row in zip(case.left, report.left, strict=True)
    )
    assert len(list(_norms(folded))) == len(case.left)
    assert weights_of(model) == before
    for expected, received in _outputs(model, folded, x):
        assert np.abs(received - expected).max() <= 3e-6 * np.abs(expected).max()


def _outputs(model, folded, x):
    """Pairs of outputs, of one run: JAX compiles it as a whole, and only once."""
    inputs = keras.Input(x.shape[1:])
    folded.name = "folded"  # no two layers of one name
    both = keras.Model(inputs, [model(inputs), folded(inputs)])
    old, new = both.predict_on_batch(x) if _COMPILED else both(x)
    flat = (keras.tree.flatten(one) for one in (old, new))
    return [(numpy(one), numpy(other)) for one, other in zip(*flat, strict=True)]


def _built(case):
    inputs = keras.Input(case.shape)
    if hasattr(case, "call"):
        return keras.Model(inputs, case.call(inputs))
    return keras.Sequential([inputs, *case.layers()])


def _norms(model):
    return (one for one in layers_in(model) if hasattr(one, "moving_mean"))


# Layers by their data format, around norms of the channels.
LAYOUTS = {
    "pooled": lambda norm, **how: [
        *(L.Conv2D(3, 2, **how), L.AveragePooling2D(2, **how), norm()),
    ],
    "repeated": lambda norm, **how: [
        *(L.Conv2D(3, 2, **how), L.UpSampling2D(2, **how), norm()),
    ],
    "of all positions": lambda norm, **how: [
        *(norm(), L.GlobalAveragePooling2D(**how), L.Dense(3)),
    ],
    "kept axes": lambda norm, **how: [
        *(norm(), L.GlobalMaxPooling2D(keepdims=True, **how), L.Conv2D(3, 1, **how)),
    ],
    "without padding": lambda norm, **how: [
        *(norm(), L.Conv2D(3, 2, strides=2, padding="same", **how)),
    ],
    "flat": lambda norm, **how: [norm(), L.Flatten(**how), L.Dense(3)],
    "depthwise": lambda norm, **how: [
        *(norm(), L.DepthwiseConv2D(3, depth_multiplier=2, **how), norm()),
    ],
    "separable": lambda norm, **how: [norm(), L.SeparableConv2D(3, 2, **how), norm()],
    "transposed": lambda norm, **how: [L.Conv2DTranspose(3, 2, **how), norm()],
    "kept axes, before": lambda norm, **how: [
        *(L.Conv2D(3, 2, **how), L.GlobalAveragePooling2D(keepdims=True, **how)),
        norm(),
    ],
}


@ON_TORCH
@pytest.mark.parametrize("case", LAYOUTS)
def test_channels_first_fold_into_the_same_weights(case):
    """Nothing is run: not every backend could."""
    folded = []
    for shape, axis, name in (((6, 6, 5), -1, "last"), ((5, 6, 6), 1, "first")):
        layers = LAYOUTS[case](
            lambda axis=axis: keras_bn.BatchNormalization(axis),
            data_format=f"channels_{name}",
        )
        model = randomize(keras.Sequential([keras.Input(shape), *layers]))
        copy, report = keras_bn.fold(model, explain=True)
        assert report.left == []
        folded.append(copy.get_weights())
    for last, first in zip(*folded, strict=True):
        np.testing.assert_allclose(first, last, rtol=1e-6)


@ON_TORCH
def test_a_kernel_of_one_position_pads_nothing_at_sizes_not_known():
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            L.BatchNormalization(beta_initializer="ones"),
            L.Conv2D(2, 1, padding="same"),
        ]
    )
    _, report = keras_bn.fold(model, explain=True, check=images(2, 5, 4, 3))
    assert (len(report.folded), len(report.left)) == (1, 0)


@ON_TORCH
def test_lora_is_merged():
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(4), keras_bn.BatchNormalization()]
    )
    model.layers[0].enable_lora(2)
    randomize(model)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
    folded = keras_bn.fold(model)
    x = images(3, 4)
    assert not folded.layers[0].lora_enabled
    np.testing.assert_allclose(numpy(folded(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)


# Layers, with what the weights that are scaled are called.
SCALED = {
    "dense": (lambda: L.Dense(3), "kernel", "bias"),
    "einsum": (lambda: L.EinsumDense("ab,bc->ac", 3, bias_axes="c"), "kernel", "bias"),
    "layer norm": (lambda: L.LayerNormalization(), "gamma", "beta"),
    "embedding": (lambda: L.Embedding(50, 3), "embeddings", None),
}


@ON_TORCH
@pytest.mark.parametrize("case", SCALED)
def test_weights_are_rounded_once(case):
    build, scaled, shifted = SCALED[case]
    layer, norms = build(), [keras_bn.BatchNormalization() for _ in range(2)]
    dtype = "int32" if case == "embedding" else "float32"
    model = keras.Sequential([keras.Input((3,), dtype=dtype), layer, *norms])
    folded = keras_bn.fold(randomize(model)).layers[0]
    names = [scaled] if shifted is None else [scaled, shifted]
    scale, offset = 1.0, 0.0
    for norm in norms:
        factor = numpy(norm.gamma) / np.sqrt(numpy(norm.moving_variance) + norm.epsilon)
        shift = numpy(norm.beta) - numpy(norm.moving_mean) * factor
        scale, offset = scale * factor, offset * factor + shift
    for name in names:
        expected = numpy(getattr(layer, name)) * scale
        if name != scaled or shifted is None:
            expected = expected + offset
        received = numpy(getattr(folded, name))
        np.testing.assert_array_equal(received, expected.astype("float32"))


class Counted(keras_bn.BatchNormalization):
    """With a weight that is made before its `build`, of another path."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = keras.Variable(0.0, trainable=False, name="seen")


@ON_TORCH
def test_a_norm_that_leaves_its_residual_keeps_weights_of_its_own():
    norm, inputs = Counted(name="norm"), keras.Input((3,))
    with keras.name_scope("block"):
        model = keras.Model(inputs, norm(inputs, residual=inputs))
    randomize(model)
    norm.seen.assign(5)
    folded, report = keras_bn.fold(model, explain=True)
    assert len(report.left) == 1
    assert [v.path for v in folded.variables] == [v.path for v in model.variables]
    assert weights_of(folded) == weights_of(model)


@ON_TORCH
def test_metrics_are_kept_and_the_model_saves(tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(4), keras_bn.BatchNormalization()]
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    x = images(8, 4)
    folded = keras_bn.fold(randomize(model))
    assert int(folded.optimizer.iterations) == 0
    assert folded.evaluate(x, x, verbose=0) == pytest.approx(
        model.evaluate(x, x, verbose=0), rel=1e-5
    )
    folded.save(tmp_path / "folded.keras")
    again = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(numpy(again(x)), numpy(folded(x)))


def _sequential(*layers):
    return keras.Sequential([keras.Input((4,)), L.Dense(4, name="dense"), *layers])


def _norm(**settings):
    return keras_bn.BatchNormalization(**settings)


@ON_TORCH
@pytest.mark.parametrize(
    ("build", "arguments", "error", "message"),
    [
        (lambda: 3, {}, TypeError, "`model` must be a Keras model. Received: model=3"),
        (
            lambda: keras.Sequential([L.Dense(4), _norm()]),
            *({}, ValueError, "`model` must be built"),
        ),
        (
            _sequential,
            {},
            ValueError,
            "`model` must have a batch norm.*none of them",
        ),
        (
            lambda: _sequential(_norm(), Unclear()),
            *({}, ValueError, "class Unclear cannot be copied"),
        ),
        *(
            (
                lambda: _sequential(_norm()),
                {"explain": given},
                TypeError,
                f"`explain` must be True or False. Received: explain={shown}$",
            )
            for given, shown in (
                ("no", "'no'"),
                (images(3, 4), r"an array of shape \(3, 4\)"),
            )
        ),
        (
            lambda: _sequential(_norm()),
            {"check": "no"},
            TypeError,
            "`check`, as data, must be an array",
        ),
    ],
)
def test_bad_arguments(build, arguments, error, message):
    with pytest.raises(error, match=message):
        keras_bn.fold(build(), **arguments)


@ON_TORCH
def test_what_the_report_says():
    model = _sequential(_norm(name="one"), L.ReLU(), _norm(name="other"))
    _, report = keras_bn.fold(model, explain=True)
    (folded,), (left,) = report.folded, report.left
    assert folded == ("one", "dense", "")
    assert left[:2] == ("other", None)
    assert report.to_dict() == {
        "folded": 1,
        "left": 1,
        "layers": [
            {"layer": "one", "into": "dense", "reason": ""},
            {"layer": "other", "into": None, "reason": left.reason},
        ],
    }
    assert repr(report) == "FoldReport(folded=1, left=1)"
    title, _, head, _, *rows = str(report).split("\n")
    assert title == "fold: 1 batch norm layers folded, 1 left"
    assert head.split() == ["layer", "into", "why", "it", "stays"]
    assert rows[0].split() == ["one", "dense"]
    assert " ".join(rows[1].split()) == f"other - {left.reason}"
