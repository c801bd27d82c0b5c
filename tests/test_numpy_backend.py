"""On a backend that has no kernels here: inference, tools, and what is refused.

numpy and, where it is installed, openvino; Keras 3.16 brings others as packages of
their own, of which the same holds.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import fresh_process
import keras_bn

pytestmark = pytest.mark.once

# Since 3.16 a package of its own stands between it and Keras.
PLUG_IN = "openvino" if keras.version() < "3.16" else "keras_openvino"
BACKENDS = [
    "numpy",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            importlib.util.find_spec(PLUG_IN) is None,
            reason=f"{PLUG_IN}, for no backend of the three, is not installed",
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
    outputs |= {name: tool(model) for name, tool in TOOLS.items()}
    np.savez(folder / "outputs.npz", **outputs)
    said = {name: refused(call, model) for name, call in REFUSED.items()}
    services = [list(one) for one in keras_bn.backend.describe()]
    # As another backend would be, which Keras takes no name for that it has not got.
    keras.backend.backend = lambda: "made_up"
    importlib.reload(keras_bn.backend)
    said["made up"] = refused(keras_bn.backend.replicas)
    (folder / "said.json").write_text(json.dumps({**said, "services": services}))


def trained():
    """The output of a training call, and the averages after it."""
    layer = keras_bn.BatchNormalization(momentum=0.5)
    y = layer(images(), training=True)
    return [keras.ops.convert_to_numpy(one) for one in (y, *layer.weights[2:])]


def recalibrated(model):
    copy = keras_bn.convert(model, momentum=0.9)
    keras_bn.recalibrate(copy, images(), verbose=0)
    return keras.ops.convert_to_numpy(copy.layers[1].moving_mean)


def applied(tool):
    return lambda model: keras.ops.convert_to_numpy(tool(model)(images()))


TOOLS = {
    "tool/keras": applied(
        lambda model: keras_bn.convert(model, to="keras", renorm=False)
    ),
    "tool/fold": applied(keras_bn.fold),
    "tool/synchronized": applied(
        lambda model: keras_bn.convert(model, synchronized=True)
    ),
    "tool/recalibrated": recalibrated,
    "tool/seen": lambda model: keras.ops.convert_to_numpy(model.layers[0](images())),
    "tool/findings": lambda model: len(keras_bn.inspect(model, images()).layers),
    **{f"training/{i}": lambda model, i=i: trained()[i] for i in range(3)},
}


def synchronized(kind=keras_bn.BatchNormalization, *call, **settings):
    def train(model):
        layer = kind(synchronized=True, **settings)
        layer.build((None, 6, 6, 2))
        before = [keras.ops.convert_to_numpy(one).copy() for one in layer.weights]
        try:
            layer(images(), *call, training=True)
        finally:
            for one, value in zip(layer.weights, before, strict=True):
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), value)

    return train


def fit(model):
    model.compile("sgd", "mse")
    model.fit(images(), np.zeros((5, 3)), verbose=0)


REFUSED = {
    "layer": synchronized(),
    "ghost batches": synchronized(virtual_batch_size=2),
    "domains": synchronized(keras_bn.DomainBatchNormalization, 0, domains=2),
    "function": lambda _: keras_bn.ops.batch_norm_train(images(), synchronized=True),
    "inspect": lambda model: keras_bn.inspect(
        keras_bn.convert(model, synchronized=True), images()
    ),
    "recalibrate": lambda model: keras_bn.recalibrate(
        model, images(), synchronized=True
    ),
    "average_statistics": keras_bn.average_statistics,
    "fit": fit,
}


def tolerance(backend, usual):
    """How far a model's outputs may be off; Keras before 3.15 asks for no float32."""
    # OpenVINO then takes bfloat16 where the processor can: two roundings of 2**-9.
    halves = backend == "openvino" and keras.version() < "3.15"
    return 2**-8 if halves else usual


def refused(call, *arguments):
    """The error that a call ends with, as text."""
    try:
        call(*arguments)
    except (ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(scope="module", params=BACKENDS)
def outputs(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model.save(folder / "model.keras")
    fresh_process.run([__file__, folder], request.param)
    said = json.loads((folder / "said.json").read_text())
    return {**np.load(folder / "outputs.npz"), **said, "backend": request.param}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("through", ["op", "layer"])
def test_inference_equals_the_definition(outputs, through, name):
    np.testing.assert_allclose(
        outputs[f"{through}/{name}"], expected(name), rtol=1e-5, atol=1e-5
    )


def test_model_saved_on_another_backend_predicts_the_same(outputs, model):
    here = keras.ops.convert_to_numpy(model(images()))
    atol = tolerance(outputs["backend"], 1e-5)
    np.testing.assert_allclose(outputs["model"], here, rtol=0, atol=atol)


def test_tools_serve(outputs, model):
    here = keras.ops.convert_to_numpy(model(images()))
    atol = tolerance(outputs["backend"], 1e-4)
    for tool in ("keras", "fold", "synchronized"):
        np.testing.assert_allclose(outputs[f"tool/{tool}"], here, rtol=0, atol=atol)
    mean = outputs["tool/seen"].mean((0, 1, 2))
    np.testing.assert_allclose(outputs["tool/recalibrated"], mean, atol=1e-5)
    assert outputs["tool/findings"] == 2


def test_a_training_call_is_by_the_definition(outputs):
    """There is no gradient, but what is computed is right, and moves the averages."""
    x = images().astype("float64")
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (
        (x - mean) / np.sqrt(variance + 1e-3),
        0.5 * mean,
        0.5 + 0.5 * variance,
    )
    for i, one in enumerate(expected):
        np.testing.assert_allclose(outputs[f"training/{i}"], one, atol=1e-5)


@pytest.mark.parametrize("name", [one for one in REFUSED if one != "fit"])
def test_what_would_be_of_one_replica_is_refused(outputs, name):
    argument = "replicas" if name == "average_statistics" else "synchronized"
    said = outputs[name]
    assert said.startswith("ValueError: "), said
    assert f"Argument `{argument}` must be" in said
    assert f"on the backend '{outputs['backend']}'" in said
    assert "Received: " in said


def test_an_unknown_backend_is_named(outputs):
    assert "on the backend 'made_up'" in outputs["made up"]


def test_keras_says_that_there_is_no_training(outputs):
    assert outputs["fit"].startswith("NotImplementedError: ")


def test_describe_says_so(outputs):
    kernels = {case: kernel for case, kernel, _ in outputs["services"]}
    assert kernels == {
        "training, every input": "reference",
        "inference, every input": "reference",
        "training, synchronized": "none",
    }


if __name__ == "__main__":
    # Keras asks whether data are TensorFlow's, and imports it for that.
    sys.modules["tensorflow"] = None
    infer(Path(sys.argv[1]))
