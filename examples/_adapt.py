"""Two ways to adapt a model to unlabelled images, batch by batch, and shifts to try.

Both normalize by other statistics than those of training, and one moves gamma
and beta. Each batch is answered as it comes, once.
"""

from collections.abc import Iterator

import keras
import numpy as np

import keras_bn


def shifted(
    name: str, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels after the shift of this name."""
    if name == "contrast":
        images = 0.7 * images + 0.1
    elif name == "noise":
        images = images + np.random.default_rng(0).normal(0, 0.3, images.shape)
    elif name == "rotation":
        images = np.rot90(images, axes=(1, 2)).copy()
    elif name == "three classes":
        # The images are as in training; it is the mixture that is not.
        images, labels = images[labels < 3], labels[labels < 3]
    else:
        raise ValueError(f"Received: shift {name!r}")
    return images.astype("float32"), labels


def as_trained(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The classes by the statistics of training."""
    return model.predict(images, batch_size=256, verbose=0).argmax(-1)


def by_new_statistics(
    model: keras.Model, batch: int, prior: float | None, images: np.ndarray
) -> np.ndarray:
    """The classes by statistics of the very batch, the old ones counting as `prior`.

    Source: Schneider et al., 2020. The model is left as it was.
    """
    trained = model.get_weights()
    found = []
    try:
        for part in batches(images, batch):
            model.set_weights(trained)
            keras_bn.recalibrate(
                model,
                part,
                prior=prior,
                batch_size=len(part),
                layer_by_layer=True,
                verbose=0,
            )
            found.append(model.predict_on_batch(part).argmax(-1))
    finally:
        model.set_weights(trained)
    return np.concatenate(found)


class EntropyMinimization:
    """Answers by the batch's statistics, then a step of gamma and beta on its entropy.

        H = -sum(p * log(p)), p = softmax(logits)

    Source: Wang et al., 2021 ("Tent"), with its optimizer, Adam. Nothing but gamma and
    beta moves, and they go on from batch to batch.

    Args:
        model: A model whose outputs are logits. It is left as it was.
    """

    def __init__(self, model: keras.Model) -> None:
        # Both the answer and the gradient are by the batch: so says `training=True`,
        # and for `predict` the setting.
        self.model = keras_bn.convert(model, inference_statistics="batch")
        for layer in self.model.layers:
            layer.trainable = isinstance(layer, keras_bn.BatchNormalization)
        self.model.compile(keras.optimizers.Adam(), entropy)
        self.model.optimizer.build(self.model.trainable_variables)

    def classes(
        self,
        trained: keras.Model,
        batch: int,
        step_size: float,
        images: np.ndarray,
    ) -> np.ndarray:
        """The classes, from the weights of `trained` on."""
        self.model.set_weights(trained.get_weights())
        for variable in self.model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        self.model.optimizer.learning_rate.assign(step_size)
        found = []
        for part in batches(images, batch):
            found.append(self.model.predict_on_batch(part).argmax(-1))
            self.model.train_on_batch(part, np.zeros(len(part)))
        return np.concatenate(found)


def entropy(_: object, logits: object) -> object:
    """Of the predictions; there are no labels."""
    logarithm = keras.ops.log_softmax(logits)
    return -keras.ops.sum(keras.ops.exp(logarithm) * logarithm, axis=-1)


def batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches of equal size; the images that are left over join the last."""
    starts = range(0, max(len(images) // size, 1) * size, size)
    for start in starts:
        yield images[start : start + size if start != starts[-1] else None]
