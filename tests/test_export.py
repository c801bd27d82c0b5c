"""Models leave Keras: every format, with norms in them, folded, and what fold leaves.

The numbers are Keras's predictions at several batch sizes, the operators that a runtime
is left with no more than with `keras.layers.BatchNormalization`.
"""

import functools
import warnings
from typing import NamedTuple

import keras
import numpy as np
import pytest

import exporters
import keras_bn
from cases_tools import images, randomize
from slow import slow

L = keras.layers
BACKEND = keras.backend.backend()
BATCHES = (1, 2, 7)


class Network(NamedTuple):
    """What stands around `norm`, the shape it takes, and how many norms fold leaves."""

    layers: object
    shape: tuple
    left: int = 0


def residual(norm):
    x = inputs = keras.Input((8, 8, 4))
    for relu in (L.ReLU(), L.Identity()):
        x = L.Conv2D(4, 3, padding="same", use_bias=False)(x)
        x = relu(norm()(x))
    x = L.GlobalAveragePooling2D()(L.ReLU()(L.Add()([x, inputs])))
    return [keras.Model(inputs, L.Dense(3)(x))]


NETWORKS = {
    "dense": Network(lambda norm: [L.Dense(4), norm(), L.ReLU()], (5,)),
    "conv1d": Network(lambda norm: [L.Conv1D(4, 3), norm(), L.ReLU()], (8, 3)),
    "conv2d": Network(
        lambda norm: [L.Conv2D(4, 3, use_bias=False), norm(), L.ReLU()], (8, 8, 3)
    ),
    # More elements than any kernel takes for small.
    "large": Network(
        lambda norm: [L.Conv2D(16, 3, use_bias=False), norm(), L.ReLU()], (96, 96, 3)
    ),
    "large conv1d": Network(
        lambda norm: [L.Conv1D(16, 3), norm(), L.ReLU()], (9000, 3)
    ),
    "residual": Network(residual, (8, 8, 4)),
    "first axis": Network(lambda norm: [norm(axis=1), L.ReLU()], (4, 8, 8), 1),
    "before padding": Network(
        lambda norm: [
            *(L.Conv2D(4, 3, activation="relu"), norm()),
            *(L.Conv2D(2, 3, padding="same"), norm()),
        ],
        (8, 8, 3),
        1,
    ),
}
FOLDED = ["conv1d", "residual", "before padding"]
LEFT = ["before padding"]
# Every network through the formats whose operators are looked at, some through all.
LOOKED_INTO = [form for form in ("ONNX", "LiteRT") if form in exporters.formats()]
OTHERS = [form for form in exporters.formats() if form not in LOOKED_INTO]
MORE_FORMATS = slow(
    "exporters take seconds for each model",
    witness="test_outputs_agree_at_every_batch_size",
)
# In the formats that take seconds: a kernel of each kind, which ONNX shows for all.
QUICK = {
    "LiteRT": {("residual", True), ("dense", False), ("residual", False)}
    | {("large conv1d", False), ("first axis", False)},
    "OpenVINO": {("residual", False)},
}


def row(form, name, folded):
    few = form in QUICK and (name, folded) not in QUICK[form]
    more = form in OTHERS and not folded and name in ("conv1d", "before padding")
    return pytest.param(form, name, folded, marks=MORE_FORMATS if few or more else ())


ROWS = [
    *(row(form, name, False) for form in LOOKED_INTO for name in NETWORKS),
    *(row(form, name, True) for form in LOOKED_INTO for name in FOLDED),
    *(
        row(form, name, False)
        for form in OTHERS
        for name in ("first axis", "residual", "conv1d", "before padding")
    ),
    *(row(form, name, True) for form in OTHERS for name in LEFT),
]
OURS, KERAS = keras_bn.BatchNormalization, L.BatchNormalization


@functools.cache
def model_of(name, norm, folded):
    network = NETWORKS[name]
    layers = network.layers(norm)
    model = randomize(keras.Sequential([keras.Input(network.shape), *layers]))
    if folded:
        model, report = keras_bn.fold(model, explain=True)
        assert len(report.left) == network.left
    model(images(1, *network.shape))  # or Keras does not export it to ONNX
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that writes a model once, and says where."""
    folder = tmp_path_factory.mktemp("exports")

    @functools.cache
    def write(form, *which):
        exporter = exporters.FORMATS[form]
        path = folder / f"{len(list(folder.iterdir()))}{exporter.suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own
            exporter.write(model_of(*which), path)
        return path

    return write


def ids(value):
    return {True: "folded", False: "norms"}.get(value, value)


@pytest.mark.parametrize(("form", "name", "folded"), ROWS, ids=ids)
def test_outputs_agree_at_every_batch_size(form, name, folded, written):
    path = written(form, name, OURS, folded)
    x = images(max(BATCHES), *NETWORKS[name].shape)
    expected = model_of(name, OURS, folded).predict(x, verbose=0)

    def error(batch):
        y = exporters.FORMATS[form].predict(path, x[:batch])
        assert y.shape == expected[:batch].shape
        return np.max(np.abs(y - expected[:batch])) / np.max(np.abs(expected))

    errors = {batch: error(batch) for batch in BATCHES}
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize(
    ("form", "name", "folded"),
    [
        *(row(form, name, False) for form in LOOKED_INTO for name in NETWORKS),
        *(row(form, name, True) for form in LOOKED_INTO for name in LEFT),
    ],
    ids=ids,
)
def test_no_more_operators_than_of_keras(form, name, folded, written):
    ours, keras_own = (
        sorted(exporters.FORMATS[form].operators(written(form, name, norm, folded)))
        for norm in (OURS, KERAS)
    )
    # On PyTorch it is one operator a norm, of Keras's three, fused with a convolution.
    fewer = BACKEND == "torch" and form == "ONNX" and not folded
    assert len(ours) <= len(keras_own) - fewer, (ours, keras_own)


@pytest.mark.parametrize(
    "form", [form for backend, form in exporters.IMPOSSIBLE if backend == BACKEND]
)
def test_keras_exports_no_model_at_all_to(form, tmp_path):
    model = keras.Sequential([keras.Input((5,)), L.Dense(4)])
    exporter = exporters.FORMATS[form]
    path = tmp_path / f"model{exporter.suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match=exporters.IMPOSSIBLE[BACKEND, form]):
            exporter.write(model, path)
