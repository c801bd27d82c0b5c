"""Accuracy against depth, with and without batch normalization.

    KERAS_BACKEND=jax python examples/depth.py

The claims: batch normalization makes it possible to train deep networks of saturating
units (Ioffe and Szegedy, 2015, abstract and section 4.2.1), and deep plain networks of
ReLUs (He et al., 2016, section 4.1: with it "forward nor backward signals vanish").

Two families: sigmoid networks of fully connected layers, and plain stacks of ReLU
convolutions. At each depth both arms try the same learning rates, which fall to zero
over the same steps, and take the one with the best validation accuracy. That rate then
trains from other seeds, and these networks see the test images once.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.figure import Figure

import keras_bn
from _study import COLOURS, Study, as_percent, figure_of, spread
from _trainer import Parts, Trainer, load_parts

STORY = __doc__


@dataclass(frozen=True)
class Family:
    """One kind of network at several depths, and the grid that both arms get."""

    depths: tuple[int, ...]
    rates: tuple[float, ...]
    steps: int
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Settings:
    mlp: Family = field(
        default_factory=lambda: Family(
            depths=(3, 6, 10),
            rates=(0.01, 0.03, 0.1, 0.3, 1.0),
            steps=2000,
            arguments={"width": 100, "activation": "sigmoid"},
        )
    )
    plain_cnn: Family = field(
        default_factory=lambda: Family(
            depths=(8, 20, 40),
            rates=(0.003, 0.01, 0.03, 0.1, 0.3),
            steps=600,
            arguments={"filters": (8, 16, 32), "activation": "relu"},
        )
    )
    batch_size: int = 64
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    norm_momentum: float = 0.9


QUICK = Settings(
    mlp=Family((1, 3), (0.3,), 10, {"width": 10}),
    plain_cnn=Family((2, 4), (0.1,), 10, {"filters": 4}),
    seeds=(1,),
)
TITLES = {
    "mlp": "sigmoid layers, fully connected",
    "plain_cnn": "ReLU convolutions, no shortcuts",
}


def main(arguments: list[str] | None = None) -> None:
    with Study("depth", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        families = {"mlp": settings.mlp, "plain_cnn": settings.plain_cnn}
        runs = {f: len(x.rates) + len(settings.seeds) for f, x in families.items()}
        study.expect(
            sum(2 * len(x.depths) * runs[f] * x.steps for f, x in families.items())
        )
        data = load_parts(study.quick)
        summary = {
            name: {
                arm: {
                    str(depth): measure(study, data, name, family, arm, depth)
                    for depth in family.depths
                }
                for arm in COLOURS
            }
            for name, family in families.items()
        }
        study.finish(summary, picture(study, families, summary))


def measure(
    study: Study, data: Parts, name: str, family: Family, arm: str, depth: int
) -> dict[str, Any]:
    """Choose the rate of one network on validation images, then test it."""
    settings = study.settings
    norm = partial(keras_bn.BatchNormalization, momentum=settings.norm_momentum)
    build = partial(
        getattr(keras_bn.models, name),
        input_shape=data.image_shape,
        depth=depth,
        norm=norm if arm == "with batch norm" else None,
        classifier_activation=None,
        **family.arguments,
    )
    trainer = Trainer(build, data, settings.batch_size)

    def train(rate: float, seed: int, test: bool) -> dict[str, Any]:
        run = partial(
            trainer.run,
            rate=rate,
            seed=seed,
            steps=family.steps,
            every=family.steps,
            falling=True,
            test=test,
            advance=study.advance,
        )
        return study.run(run, family=name, arm=arm, depth=depth, rate=rate, seed=seed)

    tuning = {
        rate: train(rate, settings.tuning_seed, test=False)["accuracy"][-1]
        for rate in family.rates
    }
    best = max(tuning, key=tuning.__getitem__)
    tests = [train(best, seed, test=True)["test"] for seed in settings.seeds]
    return {"rate": best, "tuning": list(tuning.values()), "test": spread(tests)}


def picture(
    study: Study, families: dict[str, Family], summary: dict[str, Any]
) -> Figure:
    """A panel a family: the mean over the seeds, and each seed as a dot."""
    figure, panels = figure_of(len(families))
    for axes, (name, family) in zip(panels, families.items(), strict=True):
        for arm, colour in COLOURS.items():
            found = summary[name][arm].values()
            means = [depth["test"]["mean"] for depth in found]
            axes.plot(family.depths, means, color=colour, linewidth=2, label=arm)
            for depth, result in zip(family.depths, found, strict=True):
                values = result["test"]["values"]
                axes.plot([depth] * len(values), values, "o", color=colour, alpha=0.6)
        axes.axhline(0.1, color="0.5", linestyle="--", linewidth=1)
        axes.annotate("chance", (family.depths[0], 0.11), color="0.4")
        axes.set_xticks(family.depths)
        axes.set_xlabel("depth, without the classifier")
        axes.set_title(f"{TITLES[name]}, {family.steps} steps", fontsize=11)
        as_percent(axes)
    panels[0].set_ylabel(f"test accuracy, {study.title}")
    panels[0].legend(loc="center right", frameon=False)
    return figure


if __name__ == "__main__":
    main()
