"""Accuracy against the learning rate, with and without batch normalization.

    KERAS_BACKEND=jax python examples/learning_rate.py

The claim: batch normalization lets networks train at much larger learning rates (Ioffe
and Szegedy, 2015, sections 3.3 and 4.2). Both arms get the same rates over four
decades, the same steps and seeds. What is compared is the span of rates that come
within two points of an arm's best validation accuracy. The best rate of each arm then
trains anew, from other seeds, and these networks see the test images once.

All of it is done twice: at constant rates, where the last accuracy is that of one noisy
moment, and at rates that fall to zero over the run. (The second was added after the
first had been measured, whose noise is as large as two points.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import keras_bn
from _study import COLOURS, Study, as_percent, figure_of, spread
from _trainer import Parts, Trainer, load_parts

STORY = __doc__


@dataclass(frozen=True)
class Settings:
    depth: int = 20
    filters: tuple[int, ...] = (8, 16, 32)
    batch_size: int = 64
    steps: int = 400
    seeds: tuple[int, ...] = (0, 1, 2)
    test_seeds: tuple[int, ...] = (3, 4, 5)
    norm_momentum: float = 0.9
    within: float = 0.02
    schedules: tuple[str, ...] = ("constant", "falling")
    # Four decades, three rates a decade.
    rates: tuple[float, ...] = (
        *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
        *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    )


QUICK = Settings(
    depth=4,
    filters=(4,),
    steps=20,
    seeds=(0,),
    test_seeds=(1,),
    rates=(0.1, 1.0),
)


def main(arguments: list[str] | None = None) -> None:
    with Study("learning_rate", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        norm = partial(keras_bn.BatchNormalization, momentum=settings.norm_momentum)
        arms = {"with batch norm": norm, "without": None}
        seeds = len(settings.rates) * len(settings.seeds) + len(settings.test_seeds)
        study.expect(len(settings.schedules) * len(arms) * seeds * settings.steps)
        data = load_parts(study.quick)
        trainers = {arm: trainer_of(study, data, norm) for arm, norm in arms.items()}
        summary = {}
        for schedule in settings.schedules:
            found = {
                arm: measure(study, trainer, schedule, arm)
                for arm, trainer in trainers.items()
            }
            wide, narrow = (found[arm]["span"] for arm in arms)
            summary[schedule] = {**found, "spans' ratio": round(wide / narrow, 2)}
        study.finish(summary, picture(study, summary))


def trainer_of(study: Study, data: Parts, norm: Callable | None) -> Trainer:
    """What trains one arm's network."""
    settings = study.settings
    build = partial(
        keras_bn.models.plain_cnn,
        input_shape=data.image_shape,
        depth=settings.depth,
        filters=settings.filters,
        norm=norm,
        classifier_activation=None,
    )
    return Trainer(build, data, settings.batch_size)


def measure(study: Study, trainer: Trainer, schedule: str, arm: str) -> dict:
    """Train an arm at every rate, and at its best one with other seeds."""
    settings = study.settings

    def train(rate: float, seed: int, test: bool = False) -> dict:
        run = partial(
            trainer.run,
            rate=rate,
            seed=seed,
            steps=settings.steps,
            every=settings.steps,
            falling=schedule == "falling",
            test=test,
            advance=study.advance,
        )
        return study.run(run, schedule=schedule, arm=arm, rate=rate, seed=seed)

    accuracies = {}
    for rate in settings.rates:
        runs = [train(rate, seed) for seed in settings.seeds]
        accuracies[rate] = float(np.mean([run["accuracy"][-1] for run in runs]))
    best = max(accuracies, key=accuracies.__getitem__)
    good = [
        r for r in accuracies if accuracies[r] >= accuracies[best] - settings.within
    ]
    tests = [train(best, seed, test=True) for seed in settings.test_seeds]
    return {
        "accuracies": {str(r): round(a, 5) for r, a in accuracies.items()},
        "best rate": best,
        "best accuracy": round(accuracies[best], 5),
        "lowest good rate": min(good),
        "highest good rate": max(good),
        "span": round(max(good) / min(good), 2),
        "test accuracy": spread([run["test"] for run in tests]),
    }


def picture(study: Study, summary: dict) -> Figure:
    """A panel a schedule."""
    figure, panels = figure_of(len(summary))
    for axes, (schedule, found) in zip(panels, summary.items(), strict=True):
        for height, arm in enumerate(COLOURS):
            draw(axes, study, schedule, arm, found[arm], 0.97 - 0.04 * height)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_title(f"{schedule} rate, {study.settings.steps} steps", fontsize=11)
        as_percent(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    panels[0].set_ylabel(f"validation accuracy, {study.title}")
    return figure


def draw(
    axes: Axes, study: Study, schedule: str, arm: str, found: dict, height: float
) -> None:
    """A dot a run, a line through the means, a bar over the span of good rates."""
    colour = COLOURS[arm]
    dots = [
        (run["rate"], run["accuracy"][-1])
        for run in study.document["runs"]
        if (run["schedule"], run["arm"]) == (schedule, arm) and "test" not in run
    ]
    axes.plot(*zip(*dots, strict=True), ".", color=colour, alpha=0.4)
    means = {float(rate): a for rate, a in found["accuracies"].items()}
    low, high = found["lowest good rate"], found["highest good rate"]
    label = f"{arm}: good from {low:g} to {high:g}"
    axes.plot(means.keys(), means.values(), color=colour, linewidth=2, label=label)
    axes.plot((low, high), (height, height), "|-", color=colour, linewidth=3)


if __name__ == "__main__":
    main()
