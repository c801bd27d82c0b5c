"""Gradient descent on standardized inputs, and on inputs as they come.

    KERAS_BACKEND=jax python examples/standardization.py

The claim: networks train faster on inputs of mean 0 and variance 1 (LeCun et al., 1998,
"Efficient BackProp", section 4.3), the observation that batch normalization extends to
hidden layers. The data are scikit-learn's breast-cancer measurements, whose features'
standard deviations lie five decades apart. The model is logistic regression, so that
the loss is convex and the two arms have the same minimum.

Standardized means `keras_bn.ops.batch_norm_train` over all the data as one batch. Both
arms try the same learning rates for the same steps, and each gets the rate that reaches
the target in the fewest. The picture shows two features alone, with the bias held at
its best, so that the whole path lies on the surface drawn.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer

import keras_bn
from _study import BLUE, VERMILION, Study, figure_of

STORY = __doc__
ARMS = {"as they come": VERMILION, "standardized": BLUE}


@dataclass(frozen=True)
class Settings:
    # Half decades, from what the largest feature bears to too much for any.
    rates: tuple[float, ...] = tuple(
        float(f"{10 ** (e / 2):.3g}") for e in range(-14, 3)
    )
    target: float = 0.2
    most_steps: int = 30_000
    features: tuple[str, ...] = ("worst texture", "worst concave points")
    drawn_steps: int = 200


QUICK = Settings(rates=(1e-6, 1.0), most_steps=300, drawn_steps=20)


def main(arguments: list[str] | None = None) -> None:
    with Study("standardization", STORY, arguments, Settings(), QUICK) as study:
        settings = study.settings
        study.title = "breast-cancer data"
        study.expect(len(ARMS) * len(settings.rates) * settings.most_steps)
        data = load_breast_cancer()
        deviations = data.data.std(axis=0)
        summary: dict[str, Any] = {
            "smallest standard deviation": float(deviations.min()),
            "largest standard deviation": float(deviations.max()),
            "target loss": settings.target,
        }
        for arm in ARMS:
            x = with_bias(inputs(data.data, arm))
            runs = [
                study.run(
                    lambda x=x, rate=rate: descend(study, x, data.target, rate),
                    arm=arm,
                    rate=rate,
                )
                for rate in settings.rates
            ]
            best = min(runs, key=lambda run: (run["steps"] or np.inf, run["loss"]))
            summary[arm] = {name: best[name] for name in ("rate", "steps", "loss")}
        study.finish(summary, picture(study, data))


def inputs(features: np.ndarray, arm: str) -> np.ndarray:
    """The features of one arm, in float64."""
    if arm == "as they come":
        return features
    # The variance of the smallest feature is 7e-6: an epsilon far below that.
    y, _ = keras_bn.ops.batch_norm_train(
        keras.ops.convert_to_tensor(features, "float32"), None, None, epsilon=1e-12
    )
    return keras.ops.convert_to_numpy(y).astype("float64")


def with_bias(x: np.ndarray) -> np.ndarray:
    """One more feature, that is 1."""
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean cross-entropy, over the first axis."""
    return np.mean(
        np.logaddexp(0, logits) - logits * labels.reshape(-1, *[1] * (logits.ndim - 1)),
        axis=0,
    )


def gradient(logits: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the loss by the weights of `x`."""
    return x.T @ (sigmoid(logits) - labels) / len(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def descend(
    study: Study, x: np.ndarray, labels: np.ndarray, rate: float
) -> dict[str, Any]:
    """Descend from zero weights until the loss is at its target."""
    weights = np.zeros(x.shape[1])
    most = study.settings.most_steps
    steps, lowest = None, np.inf
    for step in range(most + 1):
        logits = x @ weights
        now = float(loss(logits, labels))
        lowest = min(lowest, now)
        if now <= study.settings.target:
            steps = step
            break
        weights -= rate * gradient(logits, x, labels)
    study.advance(most)
    return {"steps": steps, "loss": round(lowest, 6)}


def minimum(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights of least loss, by Newton's method."""
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = sigmoid(x @ weights)
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(x)
        weights -= np.linalg.solve(curvature, gradient(x @ weights, x, labels))
    return weights


def picture(study: Study, data: Any) -> Figure:
    """A panel an arm: the loss over two weights, and the path down from zero."""
    figure, panels = figure_of(2, height=4.6)
    names = list(data.feature_names)
    two = [names.index(name) for name in study.settings.features]
    for axes, (arm, colour) in zip(panels, ARMS.items(), strict=True):
        x = inputs(data.data, arm)[:, two]
        *best, bias = minimum(with_bias(x), data.target)
        rate, path = fastest_path(study, x, data.target, bias)
        surface(axes, x, data.target, bias, np.array([*path, best]))
        axes.plot(*path.T, ".-", color=colour, markersize=4, linewidth=1)
        axes.plot(*best, "*", color="black", markersize=11)
        steps, end = len(path) - 1, loss(x @ path[-1] + bias, data.target)
        axes.set_title(
            f"inputs {arm}: {steps} steps at rate {rate:.2g}\n"
            f"loss {end:.4f}, at the minimum (star) "
            f"{loss(x @ best + bias, data.target):.4f}",
            fontsize=11,
        )
        axes.set_xlabel(f"weight of {study.settings.features[0]}")
        axes.set_ylabel(f"weight of {study.settings.features[1]}")
    return figure


def fastest_path(
    study: Study, x: np.ndarray, labels: np.ndarray, bias: float
) -> tuple[float, np.ndarray]:
    """The path, of one rate of the grid each, that ends lowest."""

    def path_at(rate: float) -> np.ndarray:
        path = [np.zeros(2)]
        for _ in range(study.settings.drawn_steps):
            path.append(path[-1] - rate * gradient(x @ path[-1] + bias, x, labels))
        return np.array(path)

    paths = {rate: path_at(rate) for rate in study.settings.rates}
    rate = min(paths, key=lambda rate: loss(x @ paths[rate][-1] + bias, labels))
    return rate, paths[rate]


def surface(
    axes: Axes, x: np.ndarray, labels: np.ndarray, bias: float, shown: np.ndarray
) -> None:
    """Lines of equal loss, over a window that holds all the points shown."""
    low, high = shown.min(axis=0), shown.max(axis=0)
    margin = 0.25 * (high - low)
    first, second = (
        np.linspace(*bounds, 120)
        for bounds in np.stack([low - margin, high + margin], axis=1)
    )
    grid = np.stack(np.meshgrid(first, second))
    logits = np.tensordot(x, grid, axes=1) + bias
    losses = loss(logits, labels)
    levels = losses.min() * np.geomspace(1.01, losses.max() / losses.min(), 16)
    axes.contour(first, second, losses, levels, colors="0.7", linewidths=0.8)


if __name__ == "__main__":
    main()
