"""Inference on the backends that cannot train: numpy and, where installed, openvino."""

import importlib.util
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import fresh_process
import keras_bn

pytestmark = pytest.mark.once

BACKENDS = [
    "numpy",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("openvino") is None,
            reason="openvino is not one of the three backends, and is not installed",
        ),
    ),
]

CASES = {
    "dense": ((5, 4), -1),
    "image": ((2, 3, 4, 5), -1),
    "axis_1": ((3, 5, 4), 1),
    "two_axes": ((3, 5, 4), (1, 2)),
    "far_from_zero": ((64, 3), -1),
}


def case(name):
    """x, and four parameters in the shape that the functions want."""
    shape, axis = CASES[name]
    rng = np.random.default_rng(0)
    mean = 1e4 if name == "far_from_zero" else 3
    features = np.atleast_1d(axis) % len(shape)
    broadcast = [n if i in features else 1 for i, n in enumerate(shape)]
    parameter_shape = [shape[axis]] if isinstance(axis, int) else broadcast
    x = rng.normal(mean, 2, shape).astype("float32")
    moving_mean = rng.normal(mean, 1, parameter_shape).astype("float32")
    variance, gamma, beta = rng.uniform(0.5, 2, (3, *parameter_shape)).astype("float32")
    return x, (moving_mean, variance, gamma, beta), broadcast, axis


def expected(name):
    """The definition, in float64."""
    x, parameters, broadcast, _ = case(name)
    mean, variance, gamma, beta = (
        parameter.astype("float64").reshape(broadcast) for parameter in parameters
    )
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def build_model():
    """A small convolutional model with the layer on two axes."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3),
            keras_bn.BatchNormalization(),
            keras.layers.ReLU(),
            keras_bn.BatchNormalization(axis=1, renorm=True),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.1, 0.5, w.shape) for w in model.weights])
    return model


def images():
    return np.random.default_rng(2).normal(size=(5, 6, 6, 2)).astype("float32")


def infer(folder):
    """In the sub-process: all outputs on its backend, as arrays."""
    outputs = {}
    for name in CASES:
        x, (mean, variance, gamma, beta), _, axis = case(name)
        y = keras_bn.ops.batch_norm_inference(x, mean, variance, gamma, beta, axis=axis)
        layer = keras_bn.BatchNormalization(axis=axis)
        layer.build(x.shape)
        layer.set_weights([gamma, beta, mean, variance])
        outputs[f"op/{name}"] = keras.ops.convert_to_numpy(y)
        outputs[f"layer/{name}"] = keras.ops.convert_to_numpy(layer(x))
    model = keras.models.load_model(folder / "model.keras")
    # Not `predict`: openvino's computes even a bare convolution in bfloat16 where the
    # processor can, 2e-3 off.
    outputs["model"] = keras.ops.convert_to_numpy(model(images()))
    np.savez(folder / "outputs.npz", **outputs)
    print(keras.backend.backend())


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(scope="module", params=BACKENDS)
def outputs(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model.save(folder / "model.keras")
    printed = fresh_process.run([__file__, folder], request.param)
    assert printed.splitlines()[-1] == request.param
    return dict(np.load(folder / "outputs.npz"))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("through", ["op", "layer"])
def test_inference_equals_the_definition(outputs, through, name):
    np.testing.assert_allclose(
        outputs[f"{through}/{name}"], expected(name), rtol=1e-5, atol=1e-5
    )


def test_model_saved_on_another_backend_predicts_the_same(outputs, model):
    here = keras.ops.convert_to_numpy(model(images()))
    np.testing.assert_allclose(outputs["model"], here, rtol=0, atol=1e-5)


if __name__ == "__main__":
    infer(Path(sys.argv[1]))
