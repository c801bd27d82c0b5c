"""What the three scripts share: the data, the network, and the check at the end."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_bn

PROCESSES = 2
BATCH = 64  # of all processes together
STEPS = 48
LEARNING_RATE = 0.1
TOLERANCE = 1e-4


def load():
    """Scikit-learn's digits: training and test images, training and test labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order].astype("int32")
    return images[:1536], images[1536:], labels[:1536], labels[1536:]


def batches(images, labels):
    """The batches of all steps, each for all processes together."""
    per_epoch = len(images) // BATCH
    for step in range(STEPS):
        rows = slice(step % per_epoch * BATCH, (step % per_epoch + 1) * BATCH)
        yield images[rows], labels[rows]


def part(batch, index):
    """What the process of that index trains on."""
    size = BATCH // PROCESSES
    return tuple(one[index * size : (index + 1) * size] for one in batch)


def build():
    """A small network, with the same initial weights in every process."""
    keras.utils.set_random_seed(0)
    layers = []
    for filters, strides in ((16, 1), (32, 2), (32, 2)):
        layers += [
            keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False),
            keras_bn.BatchNormalization(momentum=0.9, synchronized=True),
            # Smooth: the last bit decides on which side of its kink a ReLU falls, and
            # the two trainings that are compared would part there.
            keras.layers.Activation("silu"),
        ]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, *head])


def loss(logits, labels):
    """The mean cross-entropy of a part."""
    return keras.ops.mean(
        keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    )


def recalibrate(model, images, index=None):
    """Statistics of all images: of a process's half of them, together with the other.

    One process alone takes the same batches, one after the other.
    """
    halves = [images[: len(images) // 2], images[len(images) // 2 :]]
    if index is not None:
        data = halves[index]
    else:
        data = [
            half[start : start + BATCH]
            for half in halves
            for start in range(0, len(half), BATCH)
        ]
    keras_bn.recalibrate(
        model, data, batch_size=BATCH, verbose=0, synchronized=index is not None
    )


def weights(model):
    """All weights and moving statistics in one vector."""
    return np.concatenate(
        [keras.ops.convert_to_numpy(one).ravel() for one in model.weights]
    )


def check(together, alone, images, labels):
    """Compares the weights of all processes' training with those of one process."""
    model = build()

    def accuracy(vector):
        sizes = [int(np.prod(one.shape)) for one in model.weights]
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        model.set_weights(
            [p.reshape(w.shape) for p, w in zip(parts, model.weights, strict=True)]
        )
        logits = keras.ops.convert_to_numpy(model(images, training=False))
        return float(np.mean(logits.argmax(-1) == labels))

    difference = float(np.abs(together - alone).max())
    result = {
        "processes": PROCESSES,
        "steps": STEPS,
        "test accuracy, all processes": round(accuracy(together), 4),
        "test accuracy, one process": round(accuracy(alone), 4),
        "largest difference of a weight or statistic": difference,
    }
    print(json.dumps(result, indent=1))
    if not difference <= TOLERANCE:
        sys.exit(f"expected a difference of at most {TOLERANCE:g}")


def free_port():
    """A port on this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_processes(environments):
    """Runs this very script once for each environment, and waits for all."""
    processes = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **one})
        for one in environments
    ]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    sys.exit(max(map(abs, codes)))
