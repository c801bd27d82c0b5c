"""Batch normalization before the activation, after it, and not at all.

    KERAS_BACKEND=jax python examples/placement.py

The claim: the norm belongs before the nonlinearity (Ioffe and Szegedy, 2015, section
3.2); others report better results with it after. And this package's own: its layer
gives the curves of `keras.layers.BatchNormalization` from equal weights.

The three arms try the same learning rates for the same steps, and take the one with the
best validation accuracy. They then train from other seeds, and see the test images
once. The arm "before" runs a second time with Keras's layer, at the same rate, from the
same weights and on the same batches.

Training doubles small differences again and again, so two layers that round differently
part in the end. What that alone does is shown by a third run, with this package's layer
and weights of which each is one rounding larger.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_bn
from _study import BLUE, GREEN, PURPLE, VERMILION, Study, as_percent, figure_of, spread
from _trainer import Parts, Trainer, best_rate, load_parts

STORY = __doc__
ARM_COLOURS = {"before": BLUE, "after": GREEN, "none": VERMILION}
KERAS_S = "before, Keras's layer"
NUDGED = "before, weights one rounding larger"


@dataclass(frozen=True)
class Settings:
    depth: int = 9
    filters: tuple[int, ...] = (8, 16, 32)
    batch_size: int = 64
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    tuning_steps: int = 500
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 1500
    every: int = 50
    norm_momentum: float = 0.9
    compared_steps: int = 100
    compared_every: int = 4


QUICK = Settings(
    depth=3,
    filters=(4,),
    rates=(0.1,),
    tuning_steps=10,
    seeds=(1,),
    steps=20,
    every=10,
    compared_steps=12,
)


def main(arguments: list[str] | None = None) -> None:
    with Study("placement", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        tuning = len(settings.rates) * settings.tuning_steps
        final = len(settings.seeds) * settings.steps
        compared = 3 * len(settings.seeds) * settings.compared_steps
        study.expect(3 * tuning + 4 * final + compared)
        data = load_parts(study.quick)
        trainers = {
            arm: trainer_of(study, data, arm, keras_bn.BatchNormalization)
            for arm in ARM_COLOURS
        }
        rates = {
            arm: best_rate(study, trainers[arm], arm, settings.tuning_steps)
            for arm in trainers
        }
        trainers[KERAS_S] = trainer_of(
            study, data, "before", keras.layers.BatchNormalization
        )
        rates[KERAS_S] = rates["before"]
        runs = {
            arm: final_runs(study, arm, trainers[arm], rates[arm]) for arm in trainers
        }
        losses = {
            arm: compared_losses(study, arm, trainer, rates["before"])
            for arm, trainer in {
                "before": trainers["before"],
                KERAS_S: trainers[KERAS_S],
                NUDGED: trainers["before"],
            }.items()
        }
        apart = {
            arm: np.abs(losses[arm] - losses["before"]) for arm in (KERAS_S, NUDGED)
        }
        study.finish(summarize(runs, apart), picture(study, runs, apart))


def trainer_of(
    study: Study, data: Parts, arm: str, layer: Callable[..., keras.Layer]
) -> Trainer:
    """What trains one arm's network."""
    settings = study.settings
    build = partial(
        keras_bn.models.plain_cnn,
        input_shape=data.image_shape,
        depth=settings.depth,
        filters=settings.filters,
        norm=None if arm == "none" else partial(layer, momentum=settings.norm_momentum),
        placement="after" if arm == "after" else "before",
        classifier_activation=None,
    )
    return Trainer(build, data, settings.batch_size)


def final_runs(
    study: Study, arm: str, trainer: Trainer, rate: float
) -> list[dict[str, Any]]:
    """Train an arm from each seed, and test it."""
    settings = study.settings
    train = partial(
        trainer.run,
        rate=rate,
        steps=settings.steps,
        every=settings.every,
        test=True,
        advance=study.advance,
    )
    return [
        study.run(
            partial(train, seed=seed), phase="final", arm=arm, rate=rate, seed=seed
        )
        for seed in settings.seeds
    ]


def compared_losses(
    study: Study, arm: str, trainer: Trainer, rate: float
) -> np.ndarray:
    """The first training losses: a row a seed, one for every few steps."""
    settings = study.settings
    train = partial(
        trainer.run,
        rate=rate,
        steps=settings.compared_steps,
        every=settings.compared_every,
        begin=nudge if arm == NUDGED else lambda model: None,
        advance=study.advance,
    )
    runs = [
        study.run(
            partial(train, seed=seed), phase="compared", arm=arm, rate=rate, seed=seed
        )
        for seed in settings.seeds
    ]
    return np.array([run["loss"] for run in runs])


def nudge(model: keras.Model) -> None:
    """Make each weight of a kernel the next larger float32."""
    for weight in model.trainable_weights:
        if weight.name == "kernel":
            value = keras.ops.convert_to_numpy(weight)
            weight.assign(np.nextafter(value, np.float32(np.inf)))


def summarize(
    runs: dict[str, list[dict[str, Any]]], apart: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The arms' accuracies, and how far the losses of the compared runs are apart."""
    return {
        **{
            arm: {
                "rate": found[0]["rate"],
                "test accuracy": spread([run["test"] for run in found]),
            }
            for arm, found in runs.items()
        },
        "loss apart": {
            arm: {"first": float(found[:, 0].max()), "largest": float(found.max())}
            for arm, found in apart.items()
        },
    }


def picture(
    study: Study, runs: dict[str, list[dict[str, Any]]], apart: dict[str, np.ndarray]
) -> Figure:
    """The arms' curves; beside them how far two layers' losses are apart."""
    figure, (left, right) = figure_of(2)
    for arm, colour in ARM_COLOURS.items():
        for i, run in enumerate(runs[arm]):
            label = None if i else f"{arm}, learning rate {run['rate']:g}"
            style = {"color": colour, "linewidth": 1, "label": label}
            left.plot(run["steps"], run["accuracy"], **style)
    left.set_title("the norm before the ReLU, after it, none", fontsize=11)
    left.set_ylabel(f"validation accuracy, {study.title}")
    as_percent(left, *((0, 1) if study.quick else (0.5, 0.9)))
    settings = study.settings
    steps = range(
        settings.compared_every, settings.compared_steps + 1, settings.compared_every
    )
    for (arm, found), colour in zip(apart.items(), (PURPLE, "0.5"), strict=True):
        name = "Keras's layer" if arm == KERAS_S else "weights one rounding larger"
        for i, row in enumerate(found):
            # The losses are kept with six decimals.
            shown = np.maximum(row, 1e-6)
            label = None if i else name
            right.plot(steps, shown, color=colour, linewidth=1, label=label)
    right.set_yscale("log")
    right.set_ylabel("training loss: difference from keras_bn's layer")
    right.set_title("equal weights and batches", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.legend(loc="lower right", frameon=False)
    return figure


if __name__ == "__main__":
    main()
