"""The moving statistics of replicas that trained each by its own batches, as one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bn.ops.processes import copies, processes
from keras_bn.tools._graphs.walk import (
    STATISTICS,
    Layer,
    array,
    batch_norms,
)
from keras_bn.tools._reports.table import Table
from keras_bn.tools._statistics.moments import distance
from keras_bn.tools._statistics.replica_state import EVERY, State, merged

_EXPECTED = "a list of models, or of lists of the values of `non_trainable_variables`"


class Averaged(NamedTuple):
    """What happened to one layer.

    Attributes:
        layer: Its path in the model.
        spread: The distance of the farthest replica's statistics from the average; see
            `inspect`.
    """

    layer: str
    spread: float


class AverageReport(Table):
    """What `average_statistics` did; `print` shows it as a table.

    Attributes:
        replicas: How many replicas' statistics were averaged.
        rows: One `Averaged(layer, spread)` a layer.
    """

    def __init__(self, replicas: int, rows: list[Averaged]) -> None:
        self.replicas = replicas
        self.rows = rows

    def _counts(self) -> dict[str, Any]:
        return {"replicas": self.replicas, "layers": len(self.rows)}

    def to_dict(self) -> dict[str, Any]:
        """The report in plain Python types, ready for JSON."""
        return {
            "replicas": self.replicas,
            "layers": [row._asdict() for row in self.rows],
        }

    def __rich__(self) -> Any:
        """What rich prints."""
        return self.table(
            f"average_statistics: {len(self.rows)} batch norm layers, "
            f"{self.replicas} replicas",
            ("layer", "spread"),
            [(row.layer, f"{row.spread:.3g}") for row in self.rows],
        )


def average_statistics(
    model: Any, replicas: Sequence[Any] | None = None, *, replica_groups: Any = None
) -> AverageReport:
    """Makes one of the moving statistics of replicas that were not synchronized.

    With the replicas' means m_i and variances v_i, and weights w_i whose sum is 1,

        mean = sum(w_i * m_i)
        variance = sum(w_i * (v_i + (m_i - mean)²))

    which adds the spread between the replicas to what each has within: the average of
    the variances alone would be too small, and inference off by it. The weights are
    equal, since replicas that train together see batches of one size; where a layer
    counts (`momentum=None`, or a sum of weights with `zero_debias=True`), they are
    proportional to that, channel by channel. Batch renormalization's deviations are
    merged by the same formula, and so are moments under accumulation, by their count.
    Gamma and beta are not touched: engines keep them equal.

    Without `replicas` these are

    - the processes of `torch.distributed`, of JAX's cluster, or of the TensorFlow
      strategy in whose scope the call is. All make the call, and get the result;
    - in each process, the values of a variable on the devices: on JAX, of arrays that
      left `shard_map(check_vma=False)` as `PartitionSpec()` though they differed.
      `tf.distribute` has averaged them at each update, without the spread, which cannot
      be had back.

    One replica alone is left as it is.

    Args:
        model: A built Keras model. Its moving statistics are set.
        replicas: The replicas, where they are not the engine's: a list of models that
            are built alike, or of lists of the values of `non_trainable_variables`, in
            their order (on JAX, what `stateless_call` returned on each device; of what
            `pmap` stacked, `[[one[i] for one in stacked] for i in range(devices)]`).
        replica_groups: Which processes are averaged, as for
            `keras_bn.BatchNormalization`; an index is that of a process.

    Returns:
        An `AverageReport`.

    Raises:
        TypeError: `model` is not a Keras model; `replicas` is of another form.
        ValueError: `model` is not built, has no batch norm, or is quantized; replicas
            that are not like it; both `replicas` and `replica_groups`; statistics that
            are not finite; replicas in the middle of different accumulation steps. The
            model is then as it was.

    Counts become the sum of those of `replicas`; of an engine's replicas each keeps an
    equal share of the sum, so that they can go on, and be averaged again, with every
    sample counted once.

    Reference:
        Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for
        computing sample variances".

    Example:

    >>> import keras, keras_bn
    >>> def replica(mean):
    ...     layer = keras_bn.BatchNormalization()
    ...     model = keras.Sequential([keras.Input((1,)), layer])
    ...     layer.moving_mean.assign([mean])
    ...     return model
    >>> model = replica(0.0)
    >>> report = keras_bn.average_statistics(model, [replica(1.0), replica(3.0)])
    >>> [float(one.numpy()[0]) for one in model.layers[0].non_trainable_weights]
    [2.0, 2.0]
    """
    layers = batch_norms(model)
    if replicas is None:
        states = _of_engine(layers, replica_groups)
    elif replica_groups is not None:
        raise ValueError(
            "Argument `replica_groups` must be None where `replicas` are given. "
            f"Received: replica_groups={replica_groups!r}"
        )
    else:
        states = [_of_replica(model, layers, one) for one in _listed(replicas)]
    share = 1 if replicas is not None else len(states)
    found = {
        path: merged(path, layer, [one[path] for one in states], share)
        for path, layer in layers.items()
    }
    rows = [
        Averaged(path, _spread(layer, found[path], [one[path] for one in states]))
        for path, layer in layers.items()
    ]
    if len(states) > 1 or replicas is not None:
        for path, layer in layers.items():
            for name, value in found[path].items():
                weight = getattr(layer, name)
                weight.assign(value.astype(weight.dtype))
    return AverageReport(len(states), rows)


def _weights(layer: Layer) -> dict[str, Any]:
    found = {name: getattr(layer, name, None) for name in EVERY}
    return {name: weight for name, weight in found.items() if weight is not None}


def _of_engine(layers: dict[str, Layer], groups: Any) -> list[dict[str, State]]:
    """The states of all processes' replicas, gathered at once."""
    weights = [(p, n, w) for p, one in layers.items() for n, w in _weights(one).items()]
    here = [copies(weight.value) for _, _, weight in weights]
    # One value serves for all replicas of this process.
    most = max(map(len, here))
    rows = np.stack(
        [
            np.concatenate(
                [np.ravel(one[i % len(one)]).astype("float64") for one in here]
            )
            for i in range(most)
        ]
    )
    together = processes(groups, "replicas")
    if together is not None:
        rows = together.gather(rows.ravel()).reshape(-1, rows.shape[1])
    return [_apart(row, weights) for row in rows]


def _apart(row: np.ndarray, weights: list[tuple[str, str, Any]]) -> dict[str, State]:
    state: dict[str, State] = {}
    start = 0
    for path, name, weight in weights:
        size = int(np.prod(weight.shape))
        value = row[start : start + size].reshape(tuple(weight.shape))
        state.setdefault(path, {})[name] = value
        start += size
    return state


def _listed(replicas: Any) -> list[Any]:
    if not isinstance(replicas, (list, tuple)):
        raise TypeError(
            f"Argument `replicas` must be {_EXPECTED}. Received: replicas of type "
            f"{type(replicas).__name__}"
        )
    if not replicas:
        raise ValueError(
            "Argument `replicas` must have at least one replica. Received: []"
        )
    return list(replicas)


def _of_replica(model: Any, layers: dict[str, Layer], one: Any) -> dict[str, State]:
    if isinstance(one, keras.layers.Layer):
        others = list(batch_norms(one).values())
        values = [_weights(other) for other in others]
    elif isinstance(one, (list, tuple)):
        variables = model.non_trainable_variables
        _require_alike(len(one), len(variables), "non-trainable variables")
        of = {id(v): value for v, value in zip(variables, one, strict=True)}
        values = [
            # A moving statistic may have been made trainable; what trains is no state.
            {name: of.get(id(w), w) for name, w in _weights(layer).items()}
            for layer in layers.values()
        ]
    else:
        raise TypeError(
            f"Argument `replicas` must be {_EXPECTED}. Received: one of type "
            f"{type(one).__name__}"
        )
    _require_alike(len(values), len(layers), "batch normalization layers")
    state = {}
    for (path, layer), found in zip(layers.items(), values, strict=True):
        state[path] = _arrays(found)
        own = _shapes(_arrays(_weights(layer)))
        _require_alike(_shapes(state[path]), own, f"statistics in layer '{path}'")
    return state


def _arrays(weights: dict[str, Any]) -> State:
    return {name: array(one, "float64") for name, one in weights.items()}


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: one.shape for name, one in state.items()}


def _require_alike(received: Any, expected: Any, what: str) -> None:
    if received != expected:
        raise ValueError(
            f"Argument `replicas` must have the {what} of `model`: {expected}. "
            f"Received: {received}"
        )


def _spread(layer: Layer, found: State, states: list[State]) -> float:
    mean, variance = STATISTICS
    average = (found[mean], found[variance])
    return max(
        distance(one[mean], one[variance], *average, layer.epsilon) for one in states
    )
