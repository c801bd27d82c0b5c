"""Train on TensorFlow in two processes, with MultiWorkerMirroredStrategy.

    KERAS_BACKEND=tensorflow python examples/distributed/tensorflow_workers.py

On a cluster, TF_CONFIG tells each worker of the others; without it, the script starts
two workers on this machine. Keras's `fit` does not run under this strategy, so that the
loop is written out. Each worker trains on its half of every batch; batch normalization
sees all of it.
"""

import json
import os

import _digits
import tensorflow as tf


def main():
    """Train together, then alone on the whole batches, and compare."""
    if "TF_CONFIG" not in os.environ:
        workers = [f"127.0.0.1:{_digits.free_port()}" for _ in range(_digits.PROCESSES)]
        _digits.start_processes(
            {
                "TF_CONFIG": json.dumps(
                    {
                        "cluster": {"worker": workers},
                        "task": {"type": "worker", "index": index},
                    }
                )
            }
            for index in range(_digits.PROCESSES)
        )
    # Before any other operation of TensorFlow's.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    images, test_images, labels, test_labels = _digits.load()
    index = strategy.cluster_resolver.task_id
    with strategy.scope():
        model = _digits.build()
    train(model, images, labels, strategy, index)
    with strategy.scope():
        _digits.recalibrate(model, images, index)
    together = _digits.weights(model)
    if index == 0:
        model = _digits.build()
        train(model, images, labels)
        _digits.recalibrate(model, images)
        _digits.check(together, _digits.weights(model), test_images, test_labels)


def train(model, images, labels, strategy=None, index=None):
    """Plain gradient descent, on the worker's part of each batch."""
    weights = [one.value for one in model.trainable_variables]

    def step(x, y):
        with tf.GradientTape() as tape:
            error = _digits.loss(model(x, training=True), y)
        slopes = tape.gradient(error, weights)
        if strategy:
            context = tf.distribute.get_replica_context()
            slopes = context.all_reduce(tf.distribute.ReduceOp.MEAN, slopes)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.assign_sub(_digits.LEARNING_RATE * slope)

    @tf.function
    def run(x, y):
        return strategy.run(step, args=(x, y)) if strategy else step(x, y)

    for batch in _digits.batches(images, labels):
        run(*(_digits.part(batch, index) if strategy else batch))


if __name__ == "__main__":
    main()
