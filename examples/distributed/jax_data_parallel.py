"""Train on JAX in two processes, with `keras.distribution.DataParallel` and `fit`.

    KERAS_BACKEND=jax python examples/distributed/jax_data_parallel.py

On a cluster, KERAS_DISTRIBUTION_JOB_ADDRESSES and its companions tell each process of
the others; without them, the script starts two processes on this machine. Arrays are
global under this engine, so that batch normalization sees whole batches by itself.
"""

import os

import _digits
import keras
import numpy as np


def main():
    """Train together, then alone on the whole batches, and compare."""
    if "KERAS_DISTRIBUTION_PROCESS_ID" not in os.environ:
        address = f"127.0.0.1:{_digits.free_port()}"
        _digits.start_processes(
            {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(_digits.PROCESSES),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
            }
            for index in range(_digits.PROCESSES)
        )
    keras.distribution.initialize()
    images, test_images, labels, test_labels = _digits.load()
    index = int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"])
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )
    model = _digits.build()
    train(model, images, labels, index)
    values = model.get_weights()
    keras.distribution.set_distribution(None)
    # Arrays of this process alone, so that it can go through its own images.
    model = _digits.build()
    model.set_weights(values)
    _digits.recalibrate(model, images, index)
    together = _digits.weights(model)
    if index == 0:
        model = _digits.build()
        train(model, images, labels)
        _digits.recalibrate(model, images)
        _digits.check(together, _digits.weights(model), test_images, test_labels)


def train(model, images, labels, index=None):
    """`fit`, on the process's part of each batch."""
    every = list(_digits.batches(images, labels))
    if index is not None:
        every = [_digits.part(batch, index) for batch in every]
    x, y = (np.concatenate(arrays) for arrays in zip(*every, strict=True))
    model.compile(
        keras.optimizers.SGD(_digits.LEARNING_RATE),
        lambda y, logits: _digits.loss(logits, y),
    )
    model.fit(x, y, batch_size=len(every[0][0]), shuffle=False, verbose=0)


if __name__ == "__main__":
    main()
