"""Why training accuracy is good and validation is not: a report on each batch norm."""

from collections import defaultdict
from typing import Any

import numpy as np
from keras import tree

from keras_bn.tools._graphs.walk import (
    Layer,
    at_initial_values,
    batch_norms,
    float64,
    infers_by_batch,
    is_plain_batch_norm,
    normalizes_by_batch,
)
from keras_bn.tools._reports.calls import from_graphs
from keras_bn.tools._reports.findings import Facts, findings_of
from keras_bn.tools._reports.inspection import Inspection, LayerReport
from keras_bn.tools._reports.progress import Progress
from keras_bn.tools._statistics import batching
from keras_bn.tools._statistics.averaging import momentum_now
from keras_bn.tools._statistics.moments import RunningMoments, distance_from
from keras_bn.tools._statistics.probe import observable, observed


def inspect(
    model: Any, data: Any = None, steps: int | None = None, *, batch_size: int = 128
) -> Inspection:
    """Looks at every batch norm layer of `model`, and says what is wrong with it.

    Without data: statistics never updated or not finite, momentum too high for the
    steps taken (`momentum ** steps` of an average is still its initial value), gammas
    that are dead, variances that are negative, have collapsed or exploded, a bias that
    the layer removes, calls with `training=True`, inference by the batch.

    With data, also how far the statistics of the data are from the moving ones, layer
    by layer, with the model in training mode but for dropout. With s = sqrt(variance +
    epsilon), averaged over the channels:

        distance² = mean(((m_data - m_moving)² + (s_data - s_moving)²) / s_moving²)

    the 2-Wasserstein distance between normal distributions in moving standard
    deviations, and the root mean square change of the normalized output between
    training and inference mode. From 0.3 it is a warning, from 1 an error.

    The model is left as it was.

    Args:
        model: A built Keras model. If it is compiled, the number of the optimizer's
            steps is taken from there.
        data: Inputs as for `recalibrate`, best from the training set; or None.
        steps: How many batches to take; all of them if None.
        batch_size: Samples a batch, where `data` are arrays.

    Returns:
        An `Inspection`: `print` it, or see `.layers`, `.findings`, `.verdict`,
        `.to_dict()` and `.plot(path)`.

    Raises:
        TypeError: `model` is not a Keras model, or `data` is not data.
        ValueError: `model` is not built, has no batch norm, or is quantized; `data`
            are empty or of a wrong shape; `steps` or `batch_size` is not above 0.

    Reference:
        [Wu and Johnson, 2021](https://arxiv.org/abs/2105.07576), sections 3 and 5;
        [Dowson and Landau, 1982](https://doi.org/10.1016/0047-259X(82)90077-X) on the
        distance.

    Example:

    >>> import keras, keras_bn
    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(3), keras_bn.BatchNormalization()
    ... ])
    >>> [finding.code for finding in keras_bn.inspect(model).findings]
    ['never-updated', 'bias']
    """
    batching.check_sizes(steps, batch_size)
    layers = batch_norms(model)
    distances: dict[str, float] = {}
    change = None
    if data is not None:
        distances, change = measure(model, data, steps, batch_size)
    biases, training = from_graphs(model)
    calls = _training_calls(model)
    rows, findings = [], []
    for path, layer in layers.items():
        facts = Facts(
            path,
            layer,
            None if calls is None else calls // getattr(layer, "accumulation_steps", 1),
            distances.get(path),
            biases.get(id(layer)),
            id(layer) in training,
        )
        rows.append(_row(facts))
        findings += findings_of(facts)
    return Inspection(model.name, rows, findings, change)


@np.errstate(invalid="ignore", over="ignore")  # not finite: a finding, not a failure
def measure(
    model: Any, data: Any, steps: int | None, batch_size: int
) -> tuple[dict[str, float], float]:
    """The distance of each layer by path, and the change of the outputs.

    See `inspect` for both. Layers that the model does not call are left out.
    """
    layers = observable(model)
    trained = {p: layer for p, layer in layers.items() if normalizes_by_batch(layer)}
    frozen = {path: layers[path] for path in layers.keys() - trained.keys()}
    moments: dict[str, RunningMoments] = defaultdict(RunningMoments)
    difference = size = 0.0
    # Layer by layer: a first batch compiles every operation where the backend does.
    calls = batching.length(model, data, batch_size, steps)
    pieces = None if calls is None else calls * len(layers)
    with Progress(f"inspecting {model.name}", pieces) as progress:

        def see(path: str, *batch: Any) -> None:
            moments[path].add(*batch)
            progress.advance()

        for batch in batching.batches(model, data, batch_size, steps):
            # A frozen layer is in inference mode always.
            with observed(trained, see, True), observed(frozen, see, False):
                training = _flat(model(batch, training=False))
            # Observed again, so that calls with training=True in them change nothing.
            with observed(layers, None, by_batch=False):
                inference = _flat(model(batch, training=False))
            difference += float(np.sum((training - inference) ** 2))
            size += float(np.sum(inference**2))
    distances = {
        path: distance_from(layers[path], one.mean, one.variance)
        for path, one in moments.items()
    }
    return distances, (difference / size) ** 0.5 if size else 0.0


def _flat(outputs: Any) -> np.ndarray:
    return np.concatenate([float64(one).ravel() for one in tree.flatten(outputs)])


def _training_calls(model: Any) -> int | None:
    """How many batches the optimizer has seen: several a step where it accumulates."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    steps = int(optimizer.iterations)
    return steps * (optimizer.gradient_accumulation_steps or 1)


def _row(facts: Facts) -> LayerReport:
    layer = facts.layer
    gamma = None if layer.gamma is None else _spread(np.abs(float64(layer.gamma)))
    variance = float64(layer.moving_variance)
    return LayerReport(
        facts.path,
        _kind(layer),
        layer.axis if isinstance(layer.axis, int) else list(layer.axis),
        variance.size,
        momentum_now(layer),
        float(layer.epsilon),
        layer.trainable,
        0 if at_initial_values(layer) else facts.updates,
        _spread(np.sqrt(np.maximum(variance, 0))),
        gamma,
        facts.distance,
    )


def _kind(layer: Layer) -> str:
    name = type(layer).__name__
    if is_plain_batch_norm(layer):
        name = type(layer).__module__.split(".")[0]
    options = [one for one in ("renorm", "synchronized") if getattr(layer, one, False)]
    if infers_by_batch(layer):
        options.append("batch at inference")
    if not layer.trainable:
        options.append("frozen")
    elif not normalizes_by_batch(layer):
        options.append("frozen statistics")
    return " ".join([name, *options])


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    if not values.size:
        return (np.nan, np.nan, np.nan)
    low, middle, high = np.quantile(values, [0, 0.5, 1]).tolist()
    return low, middle, high
