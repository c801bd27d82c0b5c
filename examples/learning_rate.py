"""Accuracy against the learning rate, with and without batch normalization.

    KERAS_BACKEND=jax python examples/learning_rate.py

The claim: batch normalization lets networks train at much larger learning rates (Ioffe
and Szegedy, 2015, sections 3.3 and 4.2). Both arms get the same rates over four
decades, the same steps and seeds. What is compared is the span of rates that come
within two points of an arm's best validation accuracy. The best rate of each arm then
trains anew, from other seeds, and these networks see the test images once.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

import keras_bn
from _study import COLOURS, Study, Trainer, as_percent, figure_of, load_parts, spread

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
    # Four decades, three rates a decade.
    rates: tuple[float, ...] = (
        *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
        *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    )


QUICK = Settings(
    depth=4,
    filters=(4,),
    steps=20,
    seeds=(0, 1),
    test_seeds=(2,),
    rates=(0.01, 0.1, 1.0),
)


def main(arguments: list[str] | None = None) -> None:
    with Study("learning_rate", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        norm = partial(keras_bn.BatchNormalization, momentum=settings.norm_momentum)
        arms = {"with batch norm": norm, "without": None}
        seeds = len(settings.rates) * len(settings.seeds) + len(settings.test_seeds)
        study.expect(len(arms) * seeds * settings.steps)
        summary = {arm: measure(study, arm, norm) for arm, norm in arms.items()}
        wide, narrow = (summary[arm]["span"] for arm in arms)
        summary["spans' ratio"] = round(wide / narrow, 2)
        study.finish(summary, picture(study, summary))


def measure(study: Study, arm: str, norm: object) -> dict:
    """Train an arm at every rate, and at its best one with other seeds."""
    settings = study.settings
    data = load_parts(study.quick)
    build = partial(
        keras_bn.models.plain_cnn,
        input_shape=data.image_shape,
        depth=settings.depth,
        filters=settings.filters,
        norm=norm,
        classifier_activation=None,
    )
    trainer = Trainer(build, data, settings.batch_size)
    train = partial(
        trainer.run, steps=settings.steps, every=settings.steps, advance=study.advance
    )
    accuracies = {}
    for rate in settings.rates:
        runs = [
            study.run(
                partial(train, rate=rate, seed=seed), arm=arm, rate=rate, seed=seed
            )
            for seed in settings.seeds
        ]
        accuracies[rate] = float(np.mean([run["accuracy"][-1] for run in runs]))
    best = max(accuracies, key=accuracies.__getitem__)
    good = [
        r for r in accuracies if accuracies[r] >= accuracies[best] - settings.within
    ]
    tests = [
        study.run(
            partial(train, rate=best, seed=seed, test=True),
            arm=arm,
            rate=best,
            seed=seed,
        )
        for seed in settings.test_seeds
    ]
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
    """A point a run, a line through the means, a bar over the span of good rates."""
    figure, (axes,) = figure_of(1)
    for height, (arm, colour) in enumerate(COLOURS.items()):
        runs = [
            run
            for run in study.document["runs"]
            if run["arm"] == arm and run["seed"] in study.settings.seeds
        ]
        rates = [run["rate"] for run in runs]
        axes.plot(
            rates, [run["accuracy"][-1] for run in runs], ".", color=colour, alpha=0.4
        )
        found = summary[arm]
        means = {float(rate): a for rate, a in found["accuracies"].items()}
        label = f"{arm}: good from {found['lowest good rate']:g} to "
        label += f"{found['highest good rate']:g}"
        axes.plot(means.keys(), means.values(), color=colour, linewidth=2, label=label)
        span = found["lowest good rate"], found["highest good rate"]
        at = 0.97 - 0.03 * height
        axes.plot(span, (at, at), "|-", color=colour, linewidth=3, markersize=9)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (momentum 0.9)")
    axes.set_ylabel(f"validation accuracy after {study.settings.steps} steps")
    axes.set_title(f"{study.settings.depth} convolutions, {study.title}")
    as_percent(axes)
    axes.legend(loc="lower center", frameon=False)
    return figure


if __name__ == "__main__":
    main()
