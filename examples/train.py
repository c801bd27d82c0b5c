"""Train one small CNN with and without batch normalization, and compare the two.

    KERAS_BACKEND=jax python examples/train.py --dataset digits

Both networks start from the same weights and see the same batches in the same order.
The folder given by `--output` receives the curves (PNG and JSON) and the model.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
from rich.console import Console

import keras_bn
from _data import LOADERS, Dataset
from _report import Run, differences_table, plot_runs, runs_table

BACKENDS = ("tensorflow", "jax", "torch")
FILTERS = (16, 16, 16, 32, 32, 32, 64, 64)
# `every` is the number of steps between two measurements, `target` the accuracy whose
# step the table names. Fifteen epochs let the plain network reach it too, if late.
DEFAULTS = {
    "digits": {"epochs": 15, "batch_size": 32, "every": 5, "target": 0.95},
    "fashion_mnist": {"epochs": 3, "batch_size": 128, "every": 100, "target": 0.85},
}


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison that the command line asks for."""
    options = parse(arguments)
    console = Console()
    try:
        data = LOADERS[options.dataset]()
    except FileNotFoundError as error:
        sys.exit(str(error))
    if options.quick:
        data = data.head(train=320, val=100)
    options.output.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(options.seed)
    shape = data.x_train.shape[1:]
    plain = build_cnn(shape, len(data.classes), batch_norm=False)
    normalized = build_cnn(shape, len(data.classes), batch_norm=True)
    copy_weights(plain, normalized)
    runs = [
        train(plain, data, options, label="without batch normalization"),
        train(normalized, data, options, label="with batch normalization"),
    ]
    model_path = options.output / "model.keras"
    normalized.save(model_path)

    title = f"{data.title} on {keras.backend.backend()}"
    caption = (
        f"accuracy on {len(data.x_val)} validation images, measured every "
        f"{options.every} steps; seconds without these measurements"
    )
    console.print(runs_table(runs, target=options.target, title=title, caption=caption))
    plot_runs(
        runs,
        options.output / "curves.png",
        target=options.target,
        title=f"{title}: {len(FILTERS)} convolutions, learning rate "
        f"{options.learning_rate:g}",
    )
    backends = compare_backends(model_path, normalized, data.x_val)
    if backends:
        console.print(
            differences_table(backends, title="The saved model on other backends")
        )
    else:
        console.print("No other backend is installed here to load the model in.")
    single = predict_one(normalized, data, console)

    results = {
        "runs": [asdict(run) for run in runs],
        "backends": backends,
        "single_image": single,
    }
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"Wrote curves.png, results.json and model.keras in {options.output}")


def build_cnn(
    image_shape: tuple[int, ...], classes: int, *, batch_norm: bool
) -> keras.Model:
    """Return a stack of 3 x 3 convolutions; each may be normalized before its ReLU."""
    inputs = x = keras.Input(image_shape)
    for index, filters in enumerate(FILTERS):
        # A layer with more filters than the one before it halves the image.
        strides = 2 if index and filters > FILTERS[index - 1] else 1
        x = keras.layers.Conv2D(
            filters, 3, strides, padding="same", name=f"convolution_{index}"
        )(x)
        if batch_norm:
            # Keeping 0.9 instead of 0.99 of the moving statistics each step makes
            # them ready within a run that is only some hundred steps long.
            x = keras_bn.BatchNormalization(momentum=0.9, name=f"norm_{index}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(classes, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy the weights of each layer of `source` to `target`'s layer of that name."""
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


class ValidationCurve(keras.callbacks.Callback):
    """Measure the validation accuracy every few steps, and the time that it takes."""

    def __init__(self, data: Dataset, every: int):
        super().__init__()
        self.data, self.every = data, every
        self.step, self.seconds = 0, 0.0
        self.steps: list[int] = []
        self.accuracy: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self.every == 0:
            self.measure()

    def on_train_end(self, logs=None):
        if self.step % self.every != 0:
            self.measure()

    def measure(self) -> None:
        """Append the step and its accuracy to the curve."""
        start = time.perf_counter()
        classes = predict(self.model, self.data.x_val).argmax(axis=-1)
        self.steps.append(self.step)
        self.accuracy.append(float(np.mean(classes == self.data.y_val)))
        self.seconds += time.perf_counter() - start


def train(
    model: keras.Model, data: Dataset, options: argparse.Namespace, *, label: str
) -> Run:
    """Train `model` and return its validation curve and its seconds."""
    print(f"\nTraining {label}", flush=True)
    keras.utils.set_random_seed(options.seed)
    model.compile(
        optimizer=keras.optimizers.SGD(options.learning_rate, momentum=0.9),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    curve = ValidationCurve(data, options.every)
    start = time.perf_counter()
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=options.batch_size,
        epochs=options.epochs,
        callbacks=[curve],
        # The bar redraws its line; in a log file a line an epoch is all it can be.
        verbose=1 if sys.stdout.isatty() else 2,
    )
    seconds = time.perf_counter() - start - curve.seconds
    return Run(label, curve.steps, curve.accuracy, seconds)


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the predictions for `images`, a thousand at a time."""
    starts = range(0, len(images), 1000)
    return np.concatenate(
        [model.predict_on_batch(images[start : start + 1000]) for start in starts]
    )


def compare_backends(
    model_path: Path, model: keras.Model, images: np.ndarray
) -> dict[str, float]:
    """Return each other backend's largest difference from `model`'s predictions."""
    differences = {}
    expected = predict(model, images)
    for backend in BACKENDS:
        installed = importlib.util.find_spec(backend) is not None
        if installed and backend != keras.backend.backend():
            print(f"Loading the saved model under {backend}", flush=True)
            received = predict_under(backend, model_path, images)
            differences[backend] = float(np.abs(received - expected).max())
    return differences


def predict_under(backend: str, model_path: Path, images: np.ndarray) -> np.ndarray:
    """Load a `.keras` file in a process of another backend and predict there."""
    script = Path(__file__).with_name("_predict.py")
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.npy"), Path(folder, "outputs.npy")
        np.save(inputs, images)
        subprocess.run(
            [sys.executable, script, model_path, inputs, outputs],
            env={**os.environ, "KERAS_BACKEND": backend},
            check=True,
        )
        return np.load(outputs)


def predict_one(model: keras.Model, data: Dataset, console: Console) -> float:
    """Predict the first validation image alone; return its difference in a batch."""
    alone = predict(model, data.x_val[:1])[0]
    in_batch = predict(model, data.x_val)[0]
    difference = float(np.abs(alone - in_batch).max())
    console.print(
        f"One image alone: predicted {data.classes[alone.argmax()]!r} "
        f"({alone.max():.1%}), true {data.classes[data.y_val[0]]!r}; "
        f"differs by {difference:.1e} from the same image in a batch.",
        soft_wrap=True,
    )
    return difference


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; what it leaves out depends on the dataset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=LOADERS, default="digits")
    parser.add_argument("--epochs", type=positive_int)
    parser.add_argument("--batch-size", type=positive_int)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: results/DATASET-BACKEND")
    parser.add_argument(
        "--quick", action="store_true", help="one epoch on 320 images, to try it out"
    )
    options = parser.parse_args(arguments)
    defaults = DEFAULTS[options.dataset]
    if options.quick:
        defaults = {**defaults, "epochs": 1, "batch_size": 32, "every": 5}
    options.every, options.target = defaults["every"], defaults["target"]
    options.epochs = options.epochs or defaults["epochs"]
    options.batch_size = options.batch_size or defaults["batch_size"]
    options.output = options.output or Path(
        "results", f"{options.dataset}-{keras.backend.backend()}"
    )
    return options


def positive_int(text: str) -> int:
    """Return `text` as an integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, received {text}")
    return number


if __name__ == "__main__":
    main()
