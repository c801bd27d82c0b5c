"""How one unit's inputs move while the network trains: the paper's figure 1.

    KERAS_BACKEND=jax python examples/internal_distribution.py

The claim: batch normalization makes the inputs of a unit "more stable" over training,
and the network faster and more accurate (Ioffe and Szegedy, 2015, section 4.1 and
figure 1). The network is the paper's: three layers of 100 sigmoid units, images of
28 x 28, batches of 60.

Both arms try the same learning rates for the same steps, and take the one with the best
validation accuracy. They then train from other seeds, and see the test images once. As
a larger rate moves everything more, the network with batch norm also trains at the
other's rate.
Watched are the inputs of the last hidden layer's sigmoids, over validation images and
as at inference. Drawn are three percentiles of the layer's first unit. Two numbers
compare the arms, as means over all units and in widths of the unit's distribution (85th
less 15th percentile, the mean over training): the drift of a unit's median, from the
first measurement to the last; and its travel, the sum of all its moves from one
measurement to the next, which counts every jitter.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_bn
from _study import COLOURS, Study, as_percent, figure_of, spread
from _trainer import Parts, Trainer, best_rate, load_parts

STORY = __doc__
PERCENTILES = (15, 50, 85)
SAME_RATE = "with batch norm, at the rate without"


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
    seeds=(1,),
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
        """The first unit's percentiles; drift and travel of all units' medians."""
        low, median, high = np.moveaxis(self.percentiles, 1, 0)  # (measurement, unit)
        width = (high - low).mean(axis=0)
        drift = np.abs(median[-1] - median[0]) / width
        travel = np.abs(np.diff(median, axis=0)).sum(axis=0) / width
        first = np.round(np.array(self.percentiles)[:, :, 0].T, 4)
        return {
            "percentiles": dict(
                zip(map(str, PERCENTILES), first.tolist(), strict=True)
            ),
            "drift": round(float(drift.mean()), 4),
            "travel": round(float(travel.mean()), 4),
        }


def main(arguments: list[str] | None = None) -> None:
    with Study("internal_distribution", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        tuning = len(COLOURS) * len(settings.rates) * settings.tuning_steps
        study.expect(tuning + 3 * len(settings.seeds) * settings.steps)
        data = load_parts(study.quick, halve=False)
        trainers = {arm: trainer_of(study, data, arm) for arm in COLOURS}
        rates = {
            arm: best_rate(study, trainers[arm], arm, settings.tuning_steps)
            for arm in COLOURS
        }
        runs = {
            arm: watched_runs(study, arm, trainers[arm], rates[arm]) for arm in COLOURS
        }
        if rates["with batch norm"] != rates["without"]:
            runs[SAME_RATE] = watched_runs(
                study, SAME_RATE, trainers["with batch norm"], rates["without"]
            )
        summary = {
            arm: {
                "rate": found[0]["rate"],
                "test accuracy": spread([run["test"] for run in found]),
                "drift": spread([run["drift"] for run in found]),
                "travel": spread([run["travel"] for run in found]),
            }
            for arm, found in runs.items()
        }
        study.finish(summary, picture(study, runs))


def trainer_of(study: Study, data: Parts, arm: str) -> Trainer:
    """What trains one arm's network."""
    settings = study.settings
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
    return Trainer(build, data, settings.batch_size)


def watched_runs(
    study: Study, arm: str, trainer: Trainer, rate: float
) -> list[dict[str, Any]]:
    """Train an arm from each seed, watch its sigmoids' inputs, and test it."""
    settings = study.settings

    def train(seed: int) -> dict[str, Any]:
        images = trainer.data.x_validation[: settings.watched_images]
        watch = Watch(trainer.model, images)
        curve = trainer.run(
            rate=rate,
            seed=seed,
            steps=settings.steps,
            every=settings.every,
            test=True,
            measure=watch,
            advance=study.advance,
        )
        return {**curve, **watch.summary()}

    return [
        study.run(partial(train, seed), phase="final", arm=arm, rate=rate, seed=seed)
        for seed in settings.seeds
    ]


def separate_norm(axis: int, name: str, momentum: float) -> keras.Layer:
    """A norm that leaves the activation, and so its input, to a layer of its own."""
    return keras_bn.BatchNormalization(axis, momentum, name=name)


def picture(study: Study, runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Accuracy, then a panel an arm: the percentiles of the first seed's first unit."""
    figure, panels = figure_of(1 + len(runs), height=4)
    for arm, colour in COLOURS.items():
        for i, run in enumerate(runs[arm]):
            label = None if i else f"{arm}, rate {run['rate']:g}"
            style = {"color": colour, "linewidth": 1, "label": label}
            panels[0].plot(run["steps"], run["accuracy"], **style)
    panels[0].set_title(f"validation accuracy, {study.title}", fontsize=11)
    panels[0].legend(loc="lower right", frameon=False)
    as_percent(panels[0])
    for axes, (arm, found) in zip(panels[1:], sorted(runs.items()), strict=True):
        colour = COLOURS["without" if arm == "without" else "with batch norm"]
        low, median, high = found[0]["percentiles"].values()
        axes.fill_between(found[0]["steps"], low, high, color=colour, alpha=0.25)
        axes.plot(found[0]["steps"], median, color=colour)
        name = arm.partition(",")[0]
        axes.set_title(f"one unit {name}, rate {found[0]['rate']:g}", fontsize=11)
        if axes is not panels[1]:
            axes.sharey(panels[1])
    panels[1].set_ylabel("its input: median, 15th to 85th percentile")
    for axes in panels:
        axes.set_xlabel("training step")
    return figure


if __name__ == "__main__":
    main()
