"""Training steps to the accuracy of the network without batch normalization.

    KERAS_BACKEND=jax python examples/fewer_steps.py

The claim: with batch normalization an Inception network reached the accuracy of the
network without in 14 times fewer steps (Ioffe and Szegedy, 2015, abstract and figure
3). Here the network is a plain stack of convolutions.

1. Both arms try the same learning rates for the same steps; each takes the rate with
   the best mean of its validation accuracies: one that is fast as well as good.
2. With other seeds, the network without trains until its validation accuracy stops
   improving; the network with batch norm gets as many steps.
3. What is compared, seed by seed, is the step of the best validation accuracy without,
   and the first step at which the other is as good. The test images are looked at once,
   by the networks as they are at the end.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

import keras_bn
from _study import COLOURS, Study, as_percent, figure_of, spread
from _trainer import Trainer, best_rate, load_parts

STORY = __doc__


@dataclass(frozen=True)
class Settings:
    depth: int = 20
    filters: tuple[int, ...] = (8, 16, 32)
    batch_size: int = 64
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    tuning_steps: int = 1000
    tuning_every: int = 250
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    most_steps: int = 12_000
    patience: int = 1500
    every: int = 50
    norm_momentum: float = 0.9


QUICK = Settings(
    depth=4,
    filters=(4,),
    rates=(0.03, 0.3),
    tuning_steps=10,
    tuning_every=10,
    seeds=(1,),
    most_steps=20,
    patience=20,
    every=10,
)


def main(arguments: list[str] | None = None) -> None:
    with Study("fewer_steps", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        norm = partial(keras_bn.BatchNormalization, momentum=settings.norm_momentum)
        data = load_parts(study.quick)
        build = partial(
            keras_bn.models.plain_cnn,
            input_shape=data.image_shape,
            depth=settings.depth,
            filters=settings.filters,
            classifier_activation=None,
        )
        trainers = {
            arm: Trainer(partial(build, norm=norm), data, settings.batch_size)
            for arm, norm in {"without": None, "with batch norm": norm}.items()
        }
        tuning = len(settings.rates) * settings.tuning_steps
        final = len(settings.seeds) * settings.most_steps
        study.expect(len(trainers) * (tuning + final))
        rates = {
            arm: best_rate(study, trainers[arm], arm, settings.tuning_every)
            for arm in trainers
        }
        pairs = [race(study, trainers, rates, seed) for seed in settings.seeds]
        study.finish(summarize(rates, pairs), picture(study, rates, pairs))


def race(
    study: Study, trainers: dict[str, Trainer], rates: dict[str, float], seed: int
) -> dict:
    """Both arms from one seed: the second gets the steps that the first one took."""
    settings = study.settings
    runs = {}
    steps, patience = settings.most_steps, settings.patience
    for arm, trainer in trainers.items():
        train = partial(
            trainer.run,
            rate=rates[arm],
            seed=seed,
            steps=steps,
            every=settings.every,
            patience=patience,
            test=True,
            advance=study.advance,
        )
        runs[arm] = study.run(train, phase="race", arm=arm, rate=rates[arm], seed=seed)
        steps, patience = runs[arm]["steps"][-1], None
    plain, normed = runs["without"], runs["with batch norm"]
    best = int(np.argmax(plain["accuracy"]))
    target = plain["accuracy"][best]
    reached = [
        step
        for step, accuracy in zip(normed["steps"], normed["accuracy"], strict=True)
        if accuracy >= target
    ]
    return {
        "runs": runs,
        "target": target,
        "steps without": plain["steps"][best],
        "steps with": reached[0] if reached else None,
    }


def summarize(rates: dict[str, float], pairs: list[dict]) -> dict:
    """The numbers that the table shows."""
    ratios = [
        round(pair["steps without"] / pair["steps with"], 2)
        for pair in pairs
        if pair["steps with"]
    ]
    return {
        "rates": rates,
        "target": spread([pair["target"] for pair in pairs]),
        "steps without": spread([pair["steps without"] for pair in pairs]),
        "steps with": [pair["steps with"] for pair in pairs],
        "times fewer": spread(ratios) if ratios else None,
        "seeds that did not reach it": len(pairs) - len(ratios),
        "trained for": [pair["runs"]["without"]["steps"][-1] for pair in pairs],
        **{
            arm: {
                "best validation accuracy": spread(
                    [max(pair["runs"][arm]["accuracy"]) for pair in pairs]
                ),
                "test accuracy": spread([pair["runs"][arm]["test"] for pair in pairs]),
            }
            for arm in rates
        },
    }


def picture(study: Study, rates: dict[str, float], pairs: list[dict]) -> Figure:
    """Validation accuracy against steps, a line a seed; dots where it is compared."""
    figure, (axes,) = figure_of(1, height=4.6)
    figure.set_figwidth(7.5)
    for arm, colour in COLOURS.items():
        label = f"{arm}, learning rate {rates[arm]:g}"
        for pair in pairs:
            run = pair["runs"][arm]
            axes.plot(
                run["steps"], run["accuracy"], color=colour, linewidth=1, label=label
            )
            label = None
            name = "steps without" if arm == "without" else "steps with"
            if pair[name]:
                dot = (pair[name], pair["target"])
                axes.plot(*dot, "o", color=colour, markeredgecolor="black", zorder=3)
    axes.set_xlabel("training step")
    axes.set_ylabel("validation accuracy")
    axes.set_title(
        f"{study.settings.depth} convolutions, {study.title}: dots mark the best "
        "accuracy\nwithout batch norm, and where the other arm reached it",
        fontsize=11,
    )
    as_percent(axes, *((0, 1) if study.quick else (0.5, 0.95)))
    axes.legend(loc="lower right", frameon=False)
    return figure


if __name__ == "__main__":
    main()
