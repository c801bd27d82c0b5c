"""Statistics that lag or do not fit, repaired: the numbers in docs/tools.md.

    KERAS_BACKEND=tensorflow python examples/repair.py

All parts are on scikit-learn's digits, with a small CNN. Part 1 trains it for 50 steps:
too few for moving averages with momentum 0.99, so that training accuracy is good and
validation is not. `inspect` names it, `recalibrate` repairs it. Part 2 trains longer,
changes brightness and contrast of the test images, and adapts the statistics to them
without labels.

Part 3 is a study: test images come in batches without labels, shifted in one of four
ways, and are answered at once, by the statistics of training, by new statistics
(Schneider et al., 2020), or by new statistics and steps of gamma and beta that minimize
the entropy of the answers (Wang et al., 2021). Both ways have as many choices, made on
images set aside from the training images, under two of the shifts. The best of each
then meets the test images, under all four, with networks from other seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_bn
from _adapt import EntropyMinimization, as_trained, by_new_statistics, shifted
from _study import BLUE, GREEN, VERMILION, Study, as_percent, figure_of, spread

BATCH = 64
RATE = 3e-3


@dataclass(frozen=True)
class Settings:
    steps: int = 300
    counts: tuple[int, ...] = (1, 4, 16, 64)
    batch: int = 64
    priors: tuple[float | None, ...] = (None, 16, 64, 256)
    step_sizes: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    tuning_shifts: tuple[str, ...] = ("contrast", "noise")
    shifts: tuple[str, ...] = ("contrast", "noise", "rotation", "three classes")
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)


QUICK = Settings(
    steps=100,
    counts=(16,),
    batch=256,
    priors=(None, 16),
    step_sizes=(0.001, 0.01),
    tuning_shifts=("contrast",),
    shifts=("contrast", "three classes"),
    seeds=(1,),
)


def load():
    """1,200 images to train on, 597 to validate on, and their labels."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1200], order[1200:]
    return images[train], digits.target[train], images[test], digits.target[test]


def build(momentum, seed=0):
    """Three convolutions, each with batch norm."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8, 8, 1))]
    for i, filters in enumerate((16, 32, 32), 1):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras_bn.BatchNormalization(momentum=momentum, name=f"norm{i}"),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential(layers, name="digits")
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(model, images, labels, steps, seed=1):
    """So many steps on batches drawn at random."""
    order = np.random.default_rng(seed).integers(0, len(images), (steps, BATCH))
    for batch in order:
        model.train_on_batch(images[batch], labels[batch])
    return model


def accuracy(model, images, labels):
    """The share of right answers, in inference mode."""
    return model.evaluate(images, labels, batch_size=256, verbose=0)[1]


def lag(console, folder, data):
    """Part 1: inspect names the lag, recalibrate repairs it."""
    x, y, x_test, y_test = data
    model = train(build(momentum=0.99), x, y, steps=50)
    report = keras_bn.inspect(model, x)
    console.print(report)
    report.plot(folder / "inspect.png")
    rows = [("after 50 steps", accuracy(model, x_test, y_test), report)]
    keras_bn.recalibrate(model, x, batch_size=400)
    report = keras_bn.inspect(model, x)
    rows.append(("recalibrated", accuracy(model, x_test, y_test), report))
    folded, how = keras_bn.fold(model, explain=True)
    console.print(how)
    table = Table("model", "test accuracy", "largest distance", "outputs change by")
    for name, right, one in rows:
        distance = max(layer.distance for layer in one.layers)
        table.add_row(
            name, f"{right:.1%}", f"{distance:.3f}", f"{one.output_change:.1%}"
        )
    rows.append(("folded", accuracy(folded, x_test, y_test), None))
    table.add_row("folded", f"{rows[-1][1]:.1%}", "-", "-")
    console.print(table)
    return rows


def shift(console, model, data, steps, counts):
    """Part 2: new statistics for images of another brightness and contrast."""
    x, y, x_test, y_test = data
    train(model, x, y, steps)
    keras_bn.recalibrate(model, x, batch_size=400, verbose=0)
    trained = model.get_weights()
    images, _ = shifted("contrast", x_test, y_test)
    table = Table("images to adapt to", "prior", "accuracy on shifted images")
    found = {
        ("(not shifted)", None): accuracy(model, x_test, y_test),
        ("none", None): accuracy(model, images, y_test),
    }
    for count in counts:
        for prior in (None, 1, 4, 16):
            model.set_weights(trained)
            few = images[:count]
            keras_bn.recalibrate(
                model,
                few,
                prior=prior,
                batch_size=count,
                verbose=0,
                layer_by_layer=True,
            )
            found[count, prior] = accuracy(model, images, y_test)
    for (count, prior), right in found.items():
        table.add_row(str(count), str(prior or "-"), f"{right:.1%}")
    console.print(table)
    return found


def adaptation(study, model, data):
    """Part 3: each way's choice, and its accuracies under each shift."""
    settings = study.settings
    study.expect((1 + len(settings.seeds)) * settings.steps)
    x, y, x_test, y_test = data
    cut = len(x) * 3 // 4
    tent = EntropyMinimization(model)
    ways = {
        "new statistics": partial(by_new_statistics, model, settings.batch),
        "entropy": partial(tent.classes, model, settings.batch),
    }

    def restart(seed):
        model.set_weights(build(momentum=0.9, seed=seed).get_weights())
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        model.optimizer.learning_rate.assign(RATE)
        train(model, x[:cut], y[:cut], settings.steps, seed)
        keras_bn.recalibrate(model, x[:cut], batch_size=300, verbose=0)
        study.advance(settings.steps)

    restart(settings.tuning_seed)
    aside = [shifted(name, x[cut:], y[cut:]) for name in settings.tuning_shifts]
    best = {arm: choose(study, arm, way, aside) for arm, way in ways.items()}
    every = {"as trained": partial(as_trained, model)} | {
        arm: partial(way, best[arm]) for arm, way in ways.items()
    }
    found = {name: {arm: [] for arm in every} for name in settings.shifts}
    for seed in settings.seeds:
        restart(seed)
        for name in settings.shifts:
            images, labels = shifted(name, x_test, y_test)
            for arm, answer in every.items():
                score = partial(score_of, answer, [(images, labels)], "test")
                run = study.run(score, phase="test", arm=arm, shift=name, seed=seed)
                found[name][arm].append(run["test"])
    return {
        "choices": best,
        "accuracy": {
            name: {arm: spread(values) for arm, values in arms.items()}
            for name, arms in found.items()
        },
    }


def choose(study, arm, way: Callable, aside):
    """The prior, or the step size, that is best on the images set aside."""
    settings = study.settings
    grid = {"new statistics": settings.priors, "entropy": settings.step_sizes}[arm]
    found = []
    for number, value in enumerate(grid):
        run = study.run(
            partial(score_of, partial(way, value), aside, "validation"),
            phase="tuning",
            arm=arm,
            choice=number,
            value=value,
            seed=settings.tuning_seed,
        )
        found.append(run["validation"])
    return grid[int(np.argmax(found))]


def score_of(answer: Callable, sets, name):
    """The share of right answers, the mean over the sets of images and labels."""
    shares = [np.mean(answer(images) == labels) for images, labels in sets]
    return {name: round(float(np.mean(shares)), 5)}


ARMS = {"as trained": VERMILION, "new statistics": BLUE, "entropy": GREEN}


def picture(study, accuracies) -> Figure:
    """A group of bars for each shift: the mean over the seeds, a dot a seed."""
    figure, (axes,) = figure_of(1)
    for number, (arm, colour) in enumerate(ARMS.items()):
        places = np.arange(len(accuracies)) + (number - 1) / 4
        results = [arms[arm] for arms in accuracies.values()]
        axes.bar(
            places, [one["mean"] for one in results], 0.22, color=colour, label=arm
        )
        for place, one in zip(places, results, strict=True):
            axes.plot([place] * len(one["values"]), one["values"], "k.", alpha=0.6)
    axes.set_xticks(range(len(accuracies)), accuracies)
    axes.set_ylabel("test accuracy, digits")
    axes.set_title(f"{study.settings.batch} images a batch, no labels", fontsize=11)
    as_percent(axes)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(ARMS), frameon=False
    )
    return figure


def main(arguments=None):
    """Runs the three parts; returns what the first two found."""
    with Study("repair", __doc__, arguments, Settings(), QUICK) as study:
        folder = study.folder if study.quick else Path("results/repair")
        folder.mkdir(parents=True, exist_ok=True)
        console = Console(width=120)
        console.print(f"backend: {keras.backend.backend()}")
        data, model = load(), build(momentum=0.9)
        settings = study.settings
        first = lag(console, folder, data)
        second = shift(console, model, data, settings.steps, settings.counts)
        summary = adaptation(study, model, data)
        study.finish(summary, picture(study, summary["accuracy"]))
    return first, second


if __name__ == "__main__":
    main()
