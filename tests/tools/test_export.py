"""A folded model leaves Keras: SavedModel, ONNX, and the same numbers there."""

import warnings

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy, randomize

L = keras.layers
FORMATS = {
    "tensorflow": ["tf_saved_model", "onnx"],
    "jax": ["tf_saved_model", "onnx"],
    "torch": ["onnx"],
}[keras.backend.backend()]


@pytest.fixture(scope="module")
def folded():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), batch_size=2, name="x"),
            L.Conv2D(4, 3, use_bias=False),
            keras_bn.BatchNormalization(),
            L.ReLU(),
            L.GlobalAveragePooling2D(),
            L.Dense(5),
            keras_bn.BatchNormalization(),
        ]
    )
    model = keras_bn.fold(randomize(model))
    model(images(2, 8, 8, 3))  # Keras asks that a model be called before it exports it
    return model


def _run(path, form, x):
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        (output,) = session.run(None, {session.get_inputs()[0].name: x})
        return output
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))  # its functions do not keep it alive
    return loaded.serve(x).numpy()


@pytest.mark.parametrize("form", FORMATS)
def test_exported_outputs_agree(folded, form, tmp_path):
    path = tmp_path / ("model.onnx" if form == "onnx" else "model")
    x = images(2, 8, 8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        folded.export(path, format=form, verbose=False)
    np.testing.assert_allclose(_run(path, form, x), numpy(folded(x)), atol=1e-5)
