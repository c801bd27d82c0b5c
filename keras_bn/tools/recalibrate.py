"""Moving statistics computed anew, for the weights and the data of now."""

from typing import Any, NamedTuple

import numpy as np

from keras_bn.ops.processes import processes
from keras_bn.tools._graphs.walk import (
    Layer,
    batch_norms,
    is_domain_norm,
    normalizes_by_batch,
    why_not_plainly,
)
from keras_bn.tools._reports.table import Table
from keras_bn.tools._statistics.moments import (
    RunningAverage,
    RunningMoments,
    distance,
    set_statistics,
    statistics_of,
)
from keras_bn.tools._statistics.probe import observable, restored_on_failure
from keras_bn.tools._statistics.run import Run
from keras_bn.tools._statistics.settings import check_repeats, check_settings


class Recalibrated(NamedTuple):
    """What happened to one layer.

    Attributes:
        layer: Its path in the model.
        values: How many values its statistics were taken over, per channel (the
            smallest number, where a mask makes them differ).
        moved: The distance of the new statistics from the old; see `inspect`.
    """

    layer: str
    values: int
    moved: float


class RecalibrationReport(Table):
    """What `recalibrate` did; `print` shows it as a table.

    Attributes:
        method: The method used.
        batches: How many batches were seen (in each pass).
        samples: How many samples were seen (in each pass).
        rows: One `Recalibrated(layer, values, moved)` a layer.
    """

    def __init__(
        self, method: str, batches: int, samples: int, rows: list[Recalibrated]
    ) -> None:
        self.method = method
        self.batches = batches
        self.samples = samples
        self.rows = rows

    def _counts(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "batches": self.batches,
            "samples": self.samples,
            "layers": len(self.rows),
        }

    def to_dict(self) -> dict[str, Any]:
        """The report in plain Python types, ready for JSON."""
        return {
            "method": self.method,
            "batches": self.batches,
            "samples": self.samples,
            "layers": [row._asdict() for row in self.rows],
        }

    def __rich__(self) -> Any:
        """What rich prints."""
        return self.table(
            f"recalibrate: {len(self.rows)} batch norm layers, {self.samples} samples "
            f"in {self.batches} batches, method {self.method}",
            ("layer", "values per channel", "moved by"),
            [(row.layer, str(row.values), f"{row.moved:.3g}") for row in self.rows],
        )


def recalibrate(
    model: Any,
    data: Any,
    steps: int | None = None,
    method: str = "population",
    prior: float | None = None,
    *,
    batch_size: int = 32,
    layer_by_layer: bool = False,
    include_frozen: bool = False,
    verbose: int = 1,
    synchronized: bool = False,
    replica_groups: Any = None,
) -> RecalibrationReport:
    """Sets the moving statistics to those of `data` under the current weights.

    With `method="population"`, mean and biased variance over all data, merged exactly
    over the batches: with counts n, means m and d = m_b - m_a,

        m = m_a + d * n_b / n
        variance * n = variance_a * n_a + variance_b * n_b + d² * n_a * n_b / n

    With `method="ema"`, the moving average by the layer's momentum, continued over the
    data from where it stands. It is what training keeps but for two things: a schedule
    stands at the layer's present step for all batches, and each batch moves the average
    with `accumulation_steps` too. What the averages are made of, where a layer keeps
    that (`momentum=None`, `zero_debias=True`), is set to match.

    One pass serves all layers. Each layer then sees inputs that the layers before it
    normalized by the statistics of the *batch*, as in training, not by the new moving
    ones; for deeper layers the result therefore depends (slightly, for large batches)
    on how the data are split. `layer_by_layer=True` has no such bias: one pass for
    each layer, in the order in which they run, with all layers before it in inference
    mode. All other layers run in inference mode: dropout is off.

    This is the one tool that writes to the model it is given. If anything fails, an
    interrupt included, the model is left as it was, bit by bit.

    Args:
        model: A built Keras model.
        data: An array, a dictionary of arrays by the inputs' names, a tuple `(x, y)`,
            or batches `x`, `(x, y)` or `(x, y, sample_weight)`: a `tf.data.Dataset`, a
            `DataLoader`, a `keras.utils.PyDataset`, a generator. Labels are not used.
        steps: How many batches to take; all of them if None. Data that never end
            need it.
        method: `"population"` or `"ema"`.
        prior: Keep the old statistics as if they came from this many samples, and
            merge them with the data's by the formula above: adaptation to a shifted
            domain from few samples. Only for `method="population"`.
        batch_size: Samples a batch, where `data` are arrays. Larger is better here.
        layer_by_layer: Whether to make one pass for each layer. The data must then be
            such that one can go through them again.
        include_frozen: Whether layers with `trainable=False`, or with
            `freeze_statistics=True`, get new statistics too. Otherwise they run in
            inference mode, as they do in training.
        verbose: 1 for a progress bar, 2 for a line at its end, 0 for none.
        synchronized: Whether `data` are this process's part, and the statistics those
            of all parts together: as of one pass over all their batches. Parts may be
            uneven, or empty. All processes make the call: those of `torch.distributed`,
            of JAX's cluster, or of the TensorFlow strategy in whose scope it is. Each
            batch is one process's, in layers with `synchronized=True`, too. (Without
            it, such layers take the processes' batches together, one by one, and all
            need the same number of them.)
        replica_groups: Which processes do so, as for `keras_bn.BatchNormalization`;
            an index is that of a process.

    Returns:
        A `RecalibrationReport`.

    Raises:
        TypeError: `model` is not a Keras model, `data` is not data, an argument of a
            wrong type.
        ValueError: `model` is not built, has no batch norm (or only frozen ones), has
            one for several domains, or is quantized; `data` are empty, fewer than
            `steps` batches, of a wrong shape, hold a NaN or infinity, or give a channel
            fewer than two values; another process failed, with `synchronized`.

    Reference:
        [Wu and Johnson, 2021](https://arxiv.org/abs/2105.07576), section 3, on
        population statistics; [Schneider et al., 2020](https://arxiv.org/abs/2006.16971)
        on `prior`. They average variances; the merge here adds the spread between the
        old and the new mean, as if the samples were pooled.

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras_bn.BatchNormalization()])
    >>> data = np.array([[0.0], [2.0], [4.0]], "float32")
    >>> report = keras_bn.recalibrate(model, data, batch_size=2, verbose=0)
    >>> bn = model.layers[0]
    >>> [round(float(one.numpy()[0]), 4) for one in bn.non_trainable_weights]
    [2.0, 2.6667]
    """
    check_settings(
        steps=steps,
        method=method,
        prior=prior,
        batch_size=batch_size,
        layer_by_layer=layer_by_layer,
        include_frozen=include_frozen,
        verbose=verbose,
        synchronized=synchronized,
        replica_groups=replica_groups,
    )
    layers = chosen(model, include_frozen)
    check_repeats(model, data, layer_by_layer)
    together = processes(replica_groups) if synchronized else None
    run = Run(model, data, batch_size, steps, verbose, together)
    old = {path: statistics_of(layer) for path, layer in layers.items()}
    with restored_on_failure(model):
        if layer_by_layer:
            order = run.order(layers)
            counts: dict[str, int] = {}
            for path in order:
                one = {path: layers[path]}
                counts |= _estimate(run, one, method, prior, by_batch=False)
        else:
            counts = _estimate(run, layers, method, prior, by_batch=True)
        rows = [
            Recalibrated(path, counts[path], _moved(layer, *old[path]))
            for path, layer in layers.items()
        ]
    return RecalibrationReport(method, run.batches, run.samples, rows)


def chosen(model: Any, include_frozen: bool) -> dict[str, Layer]:
    """The layers of `model` that get new statistics, by path.

    Raises:
        TypeError: As `recalibrate`, of the model.
        ValueError: As `recalibrate`, of the model.
    """
    for path, layer in batch_norms(model).items():
        if is_domain_norm(layer):
            raise ValueError(
                f"Layer '{path}' cannot be recalibrated: {why_not_plainly(layer)}. "
                f"Received: a {type(layer).__name__}"
            )
    layers = observable(model)
    if not include_frozen:
        layers = {p: layer for p, layer in layers.items() if normalizes_by_batch(layer)}
    if not layers:
        raise ValueError(
            "Argument `model` must have a batch normalization layer with "
            "trainable=True, or `include_frozen` be True. Received: a model whose "
            "batch normalization layers are all frozen, and include_frozen=False"
        )
    return layers


def _estimate(
    run: Run, layers: dict[str, Layer], method: str, prior: Any, by_batch: bool
) -> dict[str, int]:
    """Sets the statistics of `layers` after one pass; gives the values counted."""
    found: dict[str, Any] = {
        path: RunningMoments() if method == "population" else RunningAverage(layer)
        for path, layer in layers.items()
    }
    found = run.through(layers, found, by_batch)
    counts = {path: int(np.min(one.count)) for path, one in found.items()}
    _require_enough(counts, 1 if prior else 2)
    _require_finite(found)
    for path, layer in layers.items():
        if prior is not None:
            # A sample has as many values a channel as the data's samples have.
            weight = float(prior) * found[path].count / run.samples
            found[path].add(weight, *statistics_of(layer))
    for path, layer in layers.items():
        set_statistics(layer, found[path])
    return counts


def _require_enough(counts: dict[str, int], least: int) -> None:
    for path, count in counts.items():
        if count < least:
            raise ValueError(
                f"Argument `data` must give every channel at least {least} values that "
                f"are not masked. Received: {count} for layer '{path}'"
            )


def _require_finite(found: dict[str, Any]) -> None:
    for path, one in found.items():
        if not (np.isfinite(one.mean).all() and np.isfinite(one.variance).all()):
            raise ValueError(
                "Argument `data` must give finite activations. Received: data with "
                f"which the input of layer '{path}' has a NaN or an infinity"
            )


def _moved(layer: Layer, old_mean: np.ndarray, old_variance: np.ndarray) -> float:
    """How far the statistics of `layer` are now from the old ones."""
    return distance(*statistics_of(layer), old_mean, old_variance, layer.epsilon)
