"""Small batches: batch normalization, its renormalized form, group normalization.

    KERAS_BACKEND=jax python examples/small_batch.py

The claims: batch normalization loses accuracy as the batch gets small, since its
statistics do; batch renormalization loses less (Ioffe, 2017); group normalization,
whose statistics are of one image, does not lose (Wu and He, 2018, figure 1).

Every run sees the same number of images, whatever its batch, and the moving averages
reach back over equally many. Each norm tries the same learning rates at each batch
size, which fall to zero over the run, and takes the one with the best validation
accuracy. That rate then trains from other seeds, and these networks see the test images
once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from matplotlib.figure import Figure

import keras_bn
from _study import BLUE, GREEN, VERMILION, Study, as_percent, figure_of, spread
from _trainer import Parts, Trainer, load_parts

STORY = __doc__


@dataclass(frozen=True)
class Settings:
    depth: int = 6
    filters: tuple[int, ...] = (8, 16)
    batch_sizes: tuple[int, ...] = (2, 4, 8, 32)
    images: int = 8000
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    # A moving average keeps 1 - batch / averaged_images at each step.
    averaged_images: int = 640
    groups: int = 4
    rmax: float = 3.0
    dmax: float = 5.0


QUICK = Settings(
    depth=2,
    filters=(4,),
    batch_sizes=(2, 8),
    images=32,
    rates=(0.03,),
    seeds=(1,),
    averaged_images=160,
    groups=2,
)


def batch_norm(settings: Settings, batch: int) -> Callable[..., keras.Layer]:
    momentum = 1 - batch / settings.averaged_images
    return partial(keras_bn.BatchNormalization, momentum=momentum)


def renorm(settings: Settings, batch: int) -> Callable[..., keras.Layer]:
    return partial(
        batch_norm(settings, batch),
        renorm=True,
        renorm_momentum=1 - batch / settings.averaged_images,
        renorm_clipping={
            "rmax": settings.rmax,
            "rmin": 1 / settings.rmax,
            "dmax": settings.dmax,
        },
    )


def group_norm(settings: Settings, batch: int) -> Callable[..., keras.Layer]:
    return partial(keras.layers.GroupNormalization, groups=settings.groups)


NORMS = {
    "batch norm": (batch_norm, BLUE),
    "batch renorm": (renorm, GREEN),
    "group norm": (group_norm, VERMILION),
}


def main(arguments: list[str] | None = None) -> None:
    with Study("small_batch", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        steps = sum(settings.images // batch for batch in settings.batch_sizes)
        runs = len(settings.rates) + len(settings.seeds)
        study.expect(len(NORMS) * runs * steps)
        data = load_parts(study.quick)
        summary = {
            norm: {
                str(batch): measure(study, data, norm, batch)
                for batch in settings.batch_sizes
            }
            for norm in NORMS
        }
        study.finish(summary, picture(study, summary))


def measure(study: Study, data: Parts, norm: str, batch: int) -> dict[str, Any]:
    """Choose the rate of one norm at one batch size on validation images; test it."""
    settings = study.settings
    make_norm, _ = NORMS[norm]
    build = partial(
        keras_bn.models.plain_cnn,
        input_shape=data.image_shape,
        depth=settings.depth,
        filters=settings.filters,
        norm=make_norm(settings, batch),
        classifier_activation=None,
    )
    trainer = Trainer(build, data, batch)
    steps = settings.images // batch

    def train(rate: float, seed: int, test: bool) -> dict[str, Any]:
        run = partial(
            trainer.run,
            rate=rate,
            seed=seed,
            steps=steps,
            every=steps,
            falling=True,
            test=test,
            advance=study.advance,
        )
        return study.run(run, norm=norm, batch=batch, rate=rate, seed=seed)

    tuning = {
        rate: train(rate, settings.tuning_seed, test=False)["accuracy"][-1]
        for rate in settings.rates
    }
    best = max(tuning, key=tuning.__getitem__)
    tests = [train(best, seed, test=True)["test"] for seed in settings.seeds]
    return {"rate": best, "tuning": list(tuning.values()), "test": spread(tests)}


def picture(study: Study, summary: dict[str, Any]) -> Figure:
    """Test accuracy against the batch: a line through the means, a dot a seed."""
    figure, (axes,) = figure_of(1)
    sizes = study.settings.batch_sizes
    for norm, (_, colour) in NORMS.items():
        tests = [summary[norm][str(batch)]["test"] for batch in sizes]
        means = [test["mean"] for test in tests]
        axes.plot(sizes, means, color=colour, linewidth=2, label=norm)
        for batch, test in zip(sizes, tests, strict=True):
            values = test["values"]
            axes.plot([batch] * len(values), values, "o", color=colour, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(batch) for batch in sizes])
    axes.set_xlabel("images in a batch")
    axes.set_ylabel(f"test accuracy, {study.title}")
    axes.set_title(
        f"{study.settings.depth} convolutions, {study.settings.images:,} images seen",
        fontsize=11,
    )
    as_percent(axes, *((0, 1) if study.quick else (0.5, 0.9)))
    axes.legend(loc="lower right", frameon=False)
    return figure


if __name__ == "__main__":
    main()
