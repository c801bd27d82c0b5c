"""Batch normalization before the activation, after it, and not at all.

    KERAS_BACKEND=jax python examples/placement.py

The claim: the norm belongs before the nonlinearity (Ioffe and Szegedy, 2015, section
3.2); others report better results with it after. And this package's own: its layer
gives the curves of `keras.layers.BatchNormalization` from equal weights.

The three arms try the same learning rates for the same steps, and take the one with the
best validation accuracy. They then train from other seeds, and see the test images
once. The arm "before" runs a second time with Keras's layer, at the same rate, from the
same weights and on the same batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import keras_bn
from _study import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILION,
    Parts,
    Study,
    Trainer,
    as_percent,
    figure_of,
    load_parts,
    spread,
)

STORY = __doc__
ARM_COLOURS = {"before": BLUE, "after": GREEN, "none": VERMILION}
KERAS_S = "before, Keras's layer"


@dataclass(frozen=True)
class Settings:
    depth: int = 9
    filters: tuple[int, ...] = (8, 16, 32)
    batch_size: int = 64
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    tuning_steps: int = 500
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 1500
    every: int = 50
    norm_momentum: float = 0.9


QUICK = Settings(
    depth=3,
    filters=(4,),
    rates=(0.1,),
    tuning_steps=20,
    seeds=(1, 2),
    steps=30,
    every=10,
)


def main(arguments: list[str] | None = None) -> None:
    with Study("placement", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        tuning = len(settings.rates) * settings.tuning_steps
        final = len(settings.seeds) * settings.steps
        study.expect(3 * tuning + 4 * final)
        data = load_parts(study.quick)
        runs: dict[str, list[dict[str, Any]]] = {}
        for arm in ARM_COLOURS:
            trainer = trainer_of(study, data, arm, keras_bn.BatchNormalization)
            rate = best_rate(study, arm, trainer)
            runs[arm] = final_runs(study, arm, trainer, rate)
        trainer = trainer_of(study, data, "before", keras.layers.BatchNormalization)
        rate = runs["before"][0]["rate"]
        runs[KERAS_S] = final_runs(study, KERAS_S, trainer, rate)
        study.finish(summarize(runs), picture(study, runs))


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


def best_rate(study: Study, arm: str, trainer: Trainer) -> float:
    """The rate of the grid with the best validation accuracy."""
    settings = study.settings
    accuracies = {}
    for rate in settings.rates:
        train = partial(
            trainer.run,
            rate=rate,
            seed=settings.tuning_seed,
            steps=settings.tuning_steps,
            every=settings.tuning_steps,
            advance=study.advance,
        )
        run = study.run(train, phase="tuning", arm=arm, rate=rate)
        accuracies[rate] = run["accuracy"][-1]
    return max(accuracies, key=accuracies.__getitem__)


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


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The arms' accuracies, and how far the two layers' losses are apart."""
    pairs = list(zip(runs["before"], runs[KERAS_S], strict=True))
    apart = np.array(
        [np.abs(np.subtract(ours["loss"], theirs["loss"])) for ours, theirs in pairs]
    )
    return {
        **{
            arm: {
                "rate": found[0]["rate"],
                "test accuracy": spread([run["test"] for run in found]),
                "last validation accuracy": spread(
                    [run["accuracy"][-1] for run in found]
                ),
            }
            for arm, found in runs.items()
        },
        "largest difference of the two layers' losses": {
            "first measurement": float(apart[:, 0].max()),
            "all measurements": float(apart.max()),
        },
    }


def picture(study: Study, runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """The arms' curves; beside them our layer's over Keras's."""
    figure, (left, right) = figure_of(2)
    for arm, colour in ARM_COLOURS.items():
        draw(left, runs[arm], f"{arm}, learning rate {runs[arm][0]['rate']:g}", colour)
    left.set_title("the norm before the ReLU, after it, none", fontsize=11)
    draw(right, runs[KERAS_S], "Keras's layer", PURPLE, linewidth=4, alpha=0.5)
    draw(right, runs["before"], "keras_bn", BLUE)
    right.set_title("two layers, equal weights and batches", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.set_ylabel(f"validation accuracy, {study.title}")
        axes.legend(loc="lower right", frameon=False)
        as_percent(axes)
    return figure


def draw(
    axes: Axes, runs: list[dict[str, Any]], label: str, colour: str, **style: float
) -> None:
    """A line a seed, and one entry in the legend."""
    for i, run in enumerate(runs):
        axes.plot(
            run["steps"],
            run["accuracy"],
            color=colour,
            label=None if i else label,
            **{"linewidth": 1, **style},
        )


if __name__ == "__main__":
    main()
