"""Statistics that lag or do not fit, repaired: the numbers in docs/tools.md.

    KERAS_BACKEND=tensorflow python examples/repair.py

Part 1 trains a small CNN on scikit-learn's digits for 50 steps: too few for moving
averages with momentum 0.99, so that training accuracy is good and validation is not.
`inspect` names it, `recalibrate` repairs it. Part 2 trains longer, changes brightness
and contrast of the test images, and adapts the statistics to them without labels.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_bn

BATCH = 64
CONTRAST, BRIGHTNESS = 0.7, 0.1


def load():
    """1,200 images to train on, 597 to validate on, and their labels."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    return images[train], digits.target[train], images[test], digits.target[test]


def build(momentum):
    """Three convolutions, each with batch norm."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 1))]
    for i, filters in enumerate((16, 32, 32), 1):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras_bn.BatchNormalization(momentum=momentum, name=f"norm{i}"),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential(layers, name="digits")
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(model, images, labels, steps):
    """So many steps on batches drawn at random."""
    order = np.random.default_rng(1).integers(0, len(images), (steps, BATCH))
    for batch in order:
        model.train_on_batch(images[batch], labels[batch])
    return model


def accuracy(model, images, labels):
    """The share of right answers, in inference mode."""
    return model.evaluate(images, labels, batch_size=256, verbose=0)[1]


def lag(console, folder, data):
    """Part 1: inspect names the lag, recalibrate repairs it."""
    x, y, x_test, y_test = data
    model = train(build(momentum=0.99), x, y, steps=50)
    report = keras_bn.inspect(model, x)
    console.print(report)
    report.plot(folder / "inspect.png")
    rows = [("after 50 steps", accuracy(model, x_test, y_test), report)]
    keras_bn.recalibrate(model, x, batch_size=400)
    report = keras_bn.inspect(model, x)
    rows.append(("recalibrated", accuracy(model, x_test, y_test), report))
    folded, how = keras_bn.fold(model, explain=True)
    console.print(how)
    table = Table("model", "test accuracy", "largest distance", "outputs change by")
    for name, right, one in rows:
        distance = max(layer.distance for layer in one.layers)
        table.add_row(
            name, f"{right:.1%}", f"{distance:.3f}", f"{one.output_change:.1%}"
        )
    rows.append(("folded", accuracy(folded, x_test, y_test), None))
    table.add_row("folded", f"{rows[-1][1]:.1%}", "-", "-")
    console.print(table)
    return rows


def shift(console, data, steps, counts):
    """Part 2: new statistics for images of another brightness and contrast."""
    x, y, x_test, y_test = data
    model = train(build(momentum=0.9), x, y, steps)
    keras_bn.recalibrate(model, x, batch_size=400, verbose=0)
    trained = model.get_weights()
    shifted = CONTRAST * x_test + BRIGHTNESS
    table = Table("images to adapt to", "prior", "accuracy on shifted images")
    found = {
        ("(not shifted)", None): accuracy(model, x_test, y_test),
        ("none", None): accuracy(model, shifted, y_test),
    }
    for count in counts:
        for prior in (None, 1, 4, 16):
            model.set_weights(trained)
            few = shifted[:count]
            keras_bn.recalibrate(
                model,
                few,
                prior=prior,
                batch_size=count,
                verbose=0,
                layer_by_layer=True,
            )
            found[count, prior] = accuracy(model, shifted, y_test)
    for (count, prior), right in found.items():
        table.add_row(str(count), str(prior or "-"), f"{right:.1%}")
    console.print(table)
    return found


def main(arguments=None):
    """Runs both parts, and returns what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of training, in part 2")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[1, 4, 16, 64],
        help="images to adapt to",
    )
    parser.add_argument("--results", type=Path, default=Path("results/repair"))
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    console.print(f"backend: {keras.backend.backend()}")
    data = load()
    return (
        lag(console, options.results, data),
        shift(console, data, options.steps, options.counts),
    )


if __name__ == "__main__":
    main()
