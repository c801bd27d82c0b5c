"""What eight bits cost: int8 models from LiteRT and onnxruntime, next to float32.

    KERAS_BACKEND=tensorflow python examples/quantization.py

trains a small network on scikit-learn's digits, and then a copy of it that sees the
rounding (`keras_bn.quantize_aware`). The first is quantized with Keras's batch norm
layer, with this package's, and folded. On TensorFlow both runtimes have their turn, on
the other backends onnxruntime. `--page FILE` puts the table into a page, between its
two comments.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np

import _data
import keras_bn

START, END = "<!-- quantization: start -->", "<!-- quantization: end -->"
MODELS = (
    *("Keras's layer", "this package's", "folded", "quantize-aware"),
    "quantize-aware, a step a kernel",
)
CALIBRATION = 200
"""Training images that the runtimes find the ranges of activations from."""

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One model in one runtime, next to itself in Keras, in float32.

    Attributes:
        model: What was done with it.
        runtime: What ran it, and how many steps a kernel has.
        kilobytes: The size of its file.
        mean_error: Mean absolute error, as a share of the outputs' deviation.
        largest_error: The largest one, likewise.
        exact_accuracy: On images that did not train it, in Keras.
        accuracy: On the same images, in the runtime.
    """

    model: str
    runtime: str
    kilobytes: float
    mean_error: float
    largest_error: float
    exact_accuracy: float
    accuracy: float


def build() -> keras.Sequential:
    """A network with a layer of each kind that int8 has trouble with."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for linear in (
        layers.Conv2D(16, 3, padding="same", use_bias=False),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        layers.Conv2D(32, 1, use_bias=False),
        layers.Conv2D(32, 3, strides=2, use_bias=False),
    ):
        model.add(linear)
        model.add(keras_bn.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


def train(model: keras.Model, data: _data.Dataset, epochs: int, rate: float) -> None:
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)


def quantization_aware(
    model: keras.Model, data: _data.Dataset, epochs: int, per_channel: bool = True
) -> keras.Model:
    """Trained on with rounding, by batch statistics and by frozen ones, and folded."""
    model = keras_bn.quantize_aware(model, per_channel=per_channel)
    train(model, data, epochs, rate=1e-3)
    model = keras_bn.convert(model, freeze_statistics=True)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)
    return keras_bn.fold(model)


def litert_int8(
    model: keras.Model, samples: np.ndarray, folder: Path
) -> tuple[Path, Predict]:
    """An int8 file of LiteRT, and what runs it."""
    import tensorflow as tf

    path = folder / "model.tflite"
    model.export(
        str(path),
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([one[np.newaxis]] for one in samples),
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
    )
    interpreter = tf.lite.Interpreter(str(path))

    def predict(x: np.ndarray) -> np.ndarray:
        source = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(source, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return path, predict


def onnxruntime_int8(
    model: keras.Model, samples: np.ndarray, folder: Path, per_channel: bool = True
) -> tuple[Path, Predict]:
    """An int8 file of ONNX, by static quantization, and what runs it."""
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported, prepared, path = (
        folder / f"{name}.onnx" for name in ("exported", "prepared", "int8")
    )
    model(samples[:1])  # Keras asks that a model be called before it exports it
    model.export(exported, format="onnx", verbose=False)
    quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
    name = _session(prepared).get_inputs()[0].name

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self.rest, None)
            return None if one is None else {name: one[np.newaxis]}

    quantize_static(
        *(str(prepared), str(path), Samples()),
        per_channel=per_channel,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    session: onnxruntime.InferenceSession = _session(path)
    return path, lambda x: session.run(None, {name: x})[0]


def _session(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path))


RUNTIMES = {
    "onnxruntime": onnxruntime_int8,
    "onnxruntime, a step a kernel": partial(onnxruntime_int8, per_channel=False),
}
if keras.backend.backend() == "tensorflow":
    RUNTIMES = {"LiteRT": litert_int8, **RUNTIMES}


def measure(
    title: str, model: keras.Model, data: _data.Dataset, runtimes: list[str]
) -> list[Row]:
    """One row a runtime."""
    exact = model.predict(data.x_val, verbose=0)
    rows = []
    for name in runtimes:
        quantize = RUNTIMES[name]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters' own
            path, predict = quantize(model, data.x_train[:CALIBRATION], Path(folder))
            outputs = predict(data.x_val)
            error = np.abs(outputs - exact) / exact.std()
            row = Row(
                *(title, name, path.stat().st_size / 1000),
                *(float(error.mean()), float(error.max())),
                *(_accuracy(exact, data), _accuracy(outputs, data)),
            )
        rows.append(row)
    return rows


def _accuracy(logits: np.ndarray, data: _data.Dataset) -> float:
    return float((logits.argmax(-1) == data.y_val).mean())


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | runtime | kB | mean error | largest error | accuracy | in float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (
            *(f"{row.kilobytes:.1f}", f"{row.mean_error:.2%}"),
            *(f"{row.largest_error:.1%}", f"{row.accuracy:.1%}"),
            f"{row.exact_accuracy:.1%}",
        )
        lines.append(f"| {' | '.join((row.model, row.runtime, *numbers))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="of each training")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, help="all by default"
    )
    names = list(RUNTIMES)
    parser.add_argument("--runtimes", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, help="a JSON file for the rows")
    parser.add_argument("--page", type=Path, help="a page to put the table into")
    options = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    data = _data.digits()
    model = build()
    train(model, data, options.epochs, rate=3e-3)
    make = {
        "Keras's layer": lambda: keras_bn.convert(model, to="keras"),
        "this package's": lambda: model,
        "folded": lambda: keras_bn.fold(model),
        "quantize-aware": lambda: quantization_aware(model, data, options.epochs),
        "quantize-aware, a step a kernel": lambda: quantization_aware(
            model, data, options.epochs, per_channel=False
        ),
    }
    rows = []
    for name in options.models:
        rows += measure(name, make[name](), data, options.runtimes)
    print(table(rows))
    if options.output:
        options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.page:
        before, _, rest = options.page.read_text().partition(START)
        _, _, after = rest.partition(END)
        options.page.write_text(f"{before}{START}\n{table(rows)}\n{END}{after}")
    return rows


if __name__ == "__main__":
    main()
