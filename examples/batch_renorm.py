"""Batch renormalization, by the ramp of its paper, on batches that are not alike.

    KERAS_BACKEND=jax python examples/batch_renorm.py

Every batch has images of two digits only. Batch norm takes the mean and the variance
of these two in training, and those of all ten in inference, which is another network.
Batch renormalization trains by what inference uses, within limits. At first they leave
none of it (rmax 1, dmax 0), until the moving statistics are good enough; then rmax
grows to 3 and dmax to 5, as in Ioffe, 2017 (https://arxiv.org/abs/1702.03275), and
they stay. The limits are schedules of the layer: they are saved with the model, which
goes on where it was.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_bn

BATCH, DIGITS = 16, 2


@keras.saving.register_keras_serializable("keras_bn_examples")
class Ramp(keras.optimizers.schedules.LearningRateSchedule):
    """`start` until step `first`, `end` from step `last` on, and a line between."""

    def __init__(self, start, end, first, last):
        self.start, self.end, self.first, self.last = start, end, first, last

    def __call__(self, step):
        """The value at `step`."""
        share = (keras.ops.cast(step, "float32") - self.first) / (
            self.last - self.first
        )
        return self.start + (self.end - self.start) * keras.ops.clip(share, 0.0, 1.0)

    def get_config(self):
        """The constructor's arguments."""
        return vars(self).copy()


def load():
    """1,200 images to train on, 597 to test on, and their labels."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    return images[train], digits.target[train], images[test], digits.target[test]


def batches_of_few_digits(labels, steps):
    """Indices of so many batches, each of `DIGITS` digits drawn at random."""
    rng = np.random.default_rng(1)
    each = BATCH // DIGITS
    return np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == digit), each)
            for _ in range(steps)
            for digit in rng.choice(10, DIGITS, replace=False)
        ]
    )


def norms(steps):
    """Batch norm; and batch renorm by the paper's ramp, shortened to so many steps."""
    ramp = partial(Ramp, first=steps // 8)
    limits = {
        "rmax": ramp(1.0, 3.0, last=steps * 5 // 8),
        "dmax": ramp(0.0, 5.0, last=steps * 3 // 8),
    }
    norm = partial(keras_bn.BatchNormalization, momentum=0.98)
    return {
        "batch norm": norm,
        "batch renorm": partial(
            norm, renorm=True, renorm_momentum=0.98, renorm_clipping=limits
        ),
    }


def build(norm):
    """Two convolutions, each with a norm."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 1))]
    for filters in (16, 32):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            norm(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def loaded_again(model):
    """`model` after a save and a load: with the same ramp, at the same step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return keras.models.load_model(path)


def main(arguments=None):
    """Trains with each norm, and returns the accuracy and the model of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=800, help="of training")
    choices = list(norms(0))
    parser.add_argument("--norms", nargs="+", choices=choices, default=choices)
    options = parser.parse_args(arguments)
    steps = options.steps
    console = Console(width=100)
    console.print(f"backend: {keras.backend.backend()}")
    x, y, x_test, y_test = load()
    order = batches_of_few_digits(y, steps)
    table = Table("norm", "accuracy on test images")
    found = {}
    for name in options.norms:
        model = build(norms(steps)[name])
        halves = np.split(order, [len(order) // 2 // BATCH * BATCH])
        for half in halves:
            model.fit(x[half], y[half], batch_size=BATCH, shuffle=False, verbose=0)
            model = loaded_again(model)
        found[name] = model.evaluate(x_test, y_test, verbose=0)[1], model
        table.add_row(name, f"{found[name][0]:.1%}")
    console.print(table)
    return found


if __name__ == "__main__":
    main()
