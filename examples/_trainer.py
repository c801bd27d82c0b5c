"""How the studies train: the data in three parts, and runs from equal starts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from _data import Dataset, digits, fashion_mnist
from _study import Study

STAGES, STAGE_STEPS = 20, 10
"""In how many stages a learning rate falls, and how long each is at least."""


@dataclass(frozen=True)
class Parts:
    """Labelled images in three parts: for training, for choices, for the last word."""

    title: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.x_train.shape[1:]


def parts(data: Dataset, *, validation: int, halve: bool) -> Parts:
    """Set some training images aside for validation; halve the images' sides if asked.

    The test images are those that the data's authors set aside.
    """
    order = np.random.default_rng(0).permutation(len(data.x_train))
    aside, rest = order[:validation], order[validation:]
    x_train = _halved(data.x_train) if halve else data.x_train
    return Parts(
        title=data.title,
        x_train=x_train[rest],
        y_train=data.y_train[rest],
        x_validation=x_train[aside],
        y_validation=data.y_train[aside],
        x_test=_halved(data.x_val) if halve else data.x_val,
        y_test=data.y_val,
    )


def _halved(images: np.ndarray) -> np.ndarray:
    """The mean of each 2 x 2 pixels."""
    count, height, width, channels = images.shape
    pixels = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return pixels.mean(axis=(2, 4))


def load_parts(quick: bool, *, halve: bool = True) -> Parts:
    """Digits for a quick run, else Fashion-MNIST: at 14 x 14 unless asked otherwise."""
    if quick:
        return parts(digits(), validation=280, halve=False)
    return parts(fashion_mnist(), validation=5000, halve=halve)


class Trainer:
    """Trains one architecture again and again, compiled once.

    Runs of the same seed start from the same weights and see the same batches, also
    those of trainers of other architectures.

    Args:
        build: Makes the model, whose outputs are logits.
        data: What it trains on.
        batch_size: Images of a step.
    """

    def __init__(
        self, build: Callable[[], keras.Model], data: Parts, batch_size: int
    ) -> None:
        self.build, self.data, self.batch_size = build, data, batch_size
        self.model = build()
        self.model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self.model.optimizer.build(self.model.trainable_variables)

    def restart(self, rate: float, seed: int) -> None:
        """Draw new weights and forget the optimizer's state."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self.build().get_weights())
        for variable in self.model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        self.model.optimizer.learning_rate.assign(rate)

    def run(
        self,
        *,
        rate: float,
        seed: int,
        steps: int,
        every: int,
        advance: Callable[[int], None],
        falling: bool = False,
        patience: int | None = None,
        test: bool = False,
        begin: Callable[[keras.Model], None] = lambda model: None,
        measure: Callable[[keras.Model], None] = lambda model: None,
    ) -> dict[str, Any]:
        """Train for a number of steps and return the curves.

        Args:
            rate: Of SGD with momentum 0.9.
            seed: Of the weights and of the order of the images.
            steps: To train for. A loss that is not finite ends the run before.
            every: Steps between two measurements of the validation accuracy.
            advance: Told of the steps done.
            falling: Whether the rate falls towards zero over the run, in stages, so
                that the last accuracy is not that of one noisy moment.
            patience: Steps without a better validation accuracy that end the run.
            test: Whether to measure the accuracy on the test images at the end.
            begin: Called with the model before its first step.
            measure: Called with the model at each measurement.
        """
        self.restart(rate, seed)
        begin(self.model)
        curve: dict[str, Any] = {"steps": [], "loss": [], "accuracy": []}
        batches = self._batches(seed, steps)
        measured = {*range(every, steps, every), steps}
        stages = max(1, min(STAGES, steps // STAGE_STEPS)) if falling else 1
        lowered = {steps * i // stages for i in range(stages)}
        for start, end in pairwise(sorted(measured | lowered)):
            if falling:
                self.model.optimizer.learning_rate.assign(rate * (1 - start / steps))
            loss = self._fit(batches[start:end])
            advance(end - start)
            finite = bool(np.isfinite(loss))
            if finite and end not in measured:
                continue
            curve["steps"].append(end)
            curve["loss"].append(round(loss, 6) if finite else None)
            curve["accuracy"].append(
                self.accuracy(self.data.x_validation, self.data.y_validation)
            )
            measure(self.model)
            best = curve["steps"][int(np.argmax(curve["accuracy"]))]
            if not finite or (patience and end - best >= patience):
                advance(steps - end)
                break
        curve["diverged"] = curve["loss"][-1] is None
        if test:
            curve["test"] = self.accuracy(self.data.x_test, self.data.y_test)
        return curve

    def _fit(self, batches: np.ndarray) -> float:
        """Train on these batches; return their mean loss."""
        chosen = batches.ravel()
        history = self.model.fit(
            self.data.x_train[chosen],
            self.data.y_train[chosen],
            batch_size=self.batch_size,
            shuffle=False,
            verbose=0,
        )
        return float(history.history["loss"][0])

    def _batches(self, seed: int, steps: int) -> np.ndarray:
        """The images of each step: epoch after epoch, each in an order of its own."""
        rng = np.random.default_rng(seed)
        images, wanted = len(self.data.x_train), steps * self.batch_size
        epochs = [rng.permutation(images) for _ in range(-(-wanted // images))]
        return np.concatenate(epochs)[:wanted].reshape(steps, self.batch_size)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of the images that the model gets right."""
        logits = self.model.predict(images, batch_size=500, verbose=0)
        # A model that diverged has no opinion, and does not get class 0 right.
        right = (logits.argmax(axis=-1) == labels) & np.isfinite(logits).all(axis=-1)
        return round(float(right.mean()), 5)


def best_rate(study: Study, trainer: Trainer, arm: str, every: int) -> float:
    """The learning rate of the study's grid whose validation accuracies are best.

    Each rate is tried for `settings.tuning_steps`; what counts is the mean of the
    accuracies at every `every` steps, and none where the loss was not finite.
    """
    settings = study.settings
    means = {}
    for rate in settings.rates:
        train = partial(
            trainer.run,
            rate=rate,
            seed=settings.tuning_seed,
            steps=settings.tuning_steps,
            every=every,
            advance=study.advance,
        )
        run = study.run(train, phase="tuning", arm=arm, rate=rate)
        means[rate] = 0.0 if run["diverged"] else float(np.mean(run["accuracy"]))
    return max(means, key=means.__getitem__)
