"""How one unit's inputs move while the network trains: the paper's figure 1.

    KERAS_BACKEND=jax python examples/internal_distribution.py

The claim: batch normalization makes the inputs of a unit "more stable" over training,
and the network faster and more accurate (Ioffe and Szegedy, 2015, section 4.1 and
figure 1). The network is the paper's: three layers of 100 sigmoid units, images of
28 x 28, batches of 60.

Both arms try the same learning rates for the same steps, and take the one with the best
validation accuracy. They then train from other seeds, and see the test images once.
Watched are the inputs of the last hidden layer's sigmoids, over validation images and
as at inference. Drawn are three percentiles of the layer's first unit; the number that
compares the arms is taken over all units: how far a unit's median travels from one
measurement to the next, summed over training and divided by the width of the unit's
distribution (85th less 15th percentile, the mean over training).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_bn
from _study import COLOURS, Study, Trainer, as_percent, figure_of, load_parts, spread

STORY = __doc__
PERCENTILES = (15, 50, 85)


@dataclass(frozen=True)
class Settings:
    depth: int = 3
    width: int = 100
    batch_size: int = 60
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    tuning_steps: int = 2000
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 10_000
    every: int = 100
    watched_images: int = 1000
    norm_momentum: float = 0.9


QUICK = Settings(
    width=10,
    rates=(0.1, 1.0),
    tuning_steps=20,
    seeds=(1, 2),
    steps=40,
    every=10,
    watched_images=100,
)


class Watch:
    """Notes the percentiles of the inputs of the last hidden layer's sigmoids."""

    def __init__(self, model: keras.Model, images: np.ndarray) -> None:
        *_, last = (x for x in model.layers if isinstance(x, keras.layers.Activation))
        self.inputs = keras.Model(model.inputs, last.input)
        self.images = images
        self.percentiles: list[np.ndarray] = []

    def __call__(self, model: keras.Model) -> None:
        values = self.inputs.predict(self.images, batch_size=500, verbose=0)
        self.percentiles.append(np.percentile(values, PERCENTILES, axis=0))

    def summary(self) -> dict[str, Any]:
        """The first unit's percentiles, and the travel of all units' medians."""
        low, median, high = np.moveaxis(self.percentiles, 1, 0)  # (measurement, unit)
        travel = np.abs(np.diff(median, axis=0)).sum(axis=0)
        per_width = travel / (high - low).mean(axis=0)
        first = np.round(np.array(self.percentiles)[:, :, 0].T, 4)
        return {
            "percentiles": dict(
                zip(map(str, PERCENTILES), first.tolist(), strict=True)
            ),
            "travel": round(float(per_width.mean()), 4),
        }


def main(arguments: list[str] | None = None) -> None:
    with Study("internal_distribution", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        tuning = len(settings.rates) * settings.tuning_steps
        study.expect(len(COLOURS) * (tuning + len(settings.seeds) * settings.steps))
        runs = {arm: train_arm(study, arm) for arm in COLOURS}
        summary = {
            arm: {
                "rate": found[0]["rate"],
                "test accuracy": spread([run["test"] for run in found]),
                "travel": spread([run["travel"] for run in found]),
            }
            for arm, found in runs.items()
        }
        study.finish(summary, picture(study, runs))


def train_arm(study: Study, arm: str) -> list[dict[str, Any]]:
    """Choose the arm's rate, and return its runs from the other seeds."""
    settings = study.settings
    data = load_parts(study.quick, halve=False)
    build = partial(
        keras_bn.models.mlp,
        input_shape=data.image_shape,
        depth=settings.depth,
        width=settings.width,
        norm=partial(separate_norm, momentum=settings.norm_momentum)
        if arm == "with batch norm"
        else None,
        classifier_activation=None,
    )
    trainer = Trainer(build, data, settings.batch_size)
    run = partial(trainer.run, advance=study.advance)
    steps = settings.tuning_steps
    tuning = {}
    for rate in settings.rates:
        train = partial(
            run, rate=rate, seed=settings.tuning_seed, steps=steps, every=steps
        )
        found = study.run(train, phase="tuning", arm=arm, rate=rate)
        tuning[rate] = found["accuracy"][-1]
    best = max(tuning, key=tuning.__getitem__)

    def watched(seed: int) -> dict[str, Any]:
        watch = Watch(trainer.model, data.x_validation[: settings.watched_images])
        curve = run(
            rate=best,
            seed=seed,
            steps=settings.steps,
            every=settings.every,
            test=True,
            measure=watch,
        )
        return {**curve, **watch.summary()}

    return [
        study.run(partial(watched, seed), phase="final", arm=arm, rate=best, seed=seed)
        for seed in settings.seeds
    ]


def separate_norm(axis: int, name: str, momentum: float) -> keras.Layer:
    """A norm that leaves the activation, and so its input, to a layer of its own."""
    return keras_bn.BatchNormalization(axis, momentum, name=name)


def picture(study: Study, runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy, then a panel an arm: the percentiles of the first seed's first unit."""
    figure, panels = figure_of(3)
    for arm, colour in COLOURS.items():
        label = f"{arm}, learning rate {runs[arm][0]['rate']:g}"
        for run in runs[arm]:
            panels[0].plot(
                run["steps"], run["accuracy"], color=colour, linewidth=1, label=label
            )
            label = None
    panels[0].set_ylabel(f"validation accuracy, {study.title}")
    panels[0].legend(loc="lower right", frameon=False)
    as_percent(panels[0])
    for axes, arm in zip(panels[1:], ("without", "with batch norm"), strict=True):
        steps, percentiles = runs[arm][0]["steps"], runs[arm][0]["percentiles"]
        for percentile, style in zip(percentiles, ("--", "-", ":"), strict=True):
            axes.plot(
                steps,
                percentiles[percentile],
                style,
                color=COLOURS[arm],
                label=f"{percentile}th percentile",
            )
        axes.set_title(f"{arm}: input of one sigmoid", fontsize=11)
        axes.legend(frameon=False)
    low = min(axes.get_ylim()[0] for axes in panels[1:])
    high = max(axes.get_ylim()[1] for axes in panels[1:])
    for axes in panels[1:]:
        axes.set_ylim(low, high)
    for axes in panels:
        axes.set_xlabel("training step")
    return figure


if __name__ == "__main__":
    main()
