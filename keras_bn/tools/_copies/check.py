"""Compares what a model and its copy compute."""

from typing import Any

import keras
import numpy as np

from keras_bn.tools._graphs.walk import float64, graph_in, has_graph, sublayers
from keras_bn.tools._statistics import batching

SIZE = 64
"""Positions along an axis whose length the model leaves open."""
ALLOWED = {"float64": 1e-10, "float32": 1e-4, "float16": 3e-2, "bfloat16": 2e-1}
"""Differences, of the largest output, that rounding in other places makes."""
BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
"""Digits after the point, of a number from 1 to 2: the last of them is rounded."""


def check_outputs(model: Any, copy: Any, check: Any) -> None:
    """Checks that two models compute the same in inference, on one batch.

    A network may amplify the last bit of its input. So where outputs differ by more
    than what rounding makes, they may still differ by as much as they do for inputs
    that are one rounding away. A rounding is one of the coarsest dtype that a layer
    computes in, whatever the inputs and outputs are. Neither model is written to.

    Args:
        model: The model.
        copy: Its copy.
        check: False for no check, True for made-up inputs, or data as for `recalibrate`
            of which one batch is taken.

    Raises:
        TypeError: `check` is neither.
        ValueError: The outputs differ; inputs cannot be made up.
    """
    if isinstance(check, np.bool_):
        check = bool(check)
    if check is False or check is None:
        return
    batch = made_up(model) if check is True else _first(model, check)
    expected, received = _outputs(model, batch), _outputs(copy, batch)
    pairs = list(zip(expected, received, strict=True))
    within = _dtypes_within(model)
    excess = max(_difference(*pair) - _rounding(pair[0], within) for pair in pairs)
    if excess <= 0:
        return

    def nudged(tensor: Any) -> Any:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype not in BITS:
            return tensor
        bits = min(BITS[one] for one in {dtype, *within} if one in BITS)
        return tensor * (1 + 0.5**bits)

    nearby = _outputs(model, keras.tree.map_structure(nudged, batch))
    noise = max(map(_difference, expected, nearby))
    if excess > 10 * noise:
        raise ValueError(
            f"The copy of model '{model.name}' computes something else: outputs differ "
            f"by {max(_difference(*pair) for pair in pairs):.3g}. The largest is "
            f"{max(_largest(one) for one in expected):.3g}, and a last bit of the "
            f"inputs changes them by {noise:.3g}. `check=False` gives the copy all "
            "the same"
        )


def _dtypes_within(model: Any) -> set[str]:
    """The dtypes that layers compute in: inputs and graphs round nothing themselves."""
    return {
        layer.compute_dtype
        for _, layer in sublayers(model)
        if not (isinstance(layer, keras.layers.InputLayer) or has_graph(layer))
    }


def _outputs(model: Any, batch: Any) -> list[Any]:
    """Each output, and its dtype."""
    # What a call would write, such as the state of a random generator, goes there.
    with keras.StatelessScope():
        flat = keras.tree.flatten(model(batch, training=False))
        return [
            (float64(one), keras.backend.standardize_dtype(one.dtype)) for one in flat
        ]


def _difference(one: Any, other: Any) -> float:
    """The largest; what is not finite must be the same."""
    if one[0].shape != other[0].shape:
        return float("inf")
    pair = (one[0], other[0])
    finite = [np.where(np.isfinite(each), each, 0.0) for each in pair]
    rest = [np.where(np.isfinite(each), 0.0, each) for each in pair]
    if not np.array_equal(rest[0], rest[1], equal_nan=True):
        return float("inf")
    return float(np.max(np.abs(finite[0] - finite[1]), initial=0.0))


def _largest(one: Any) -> float:
    return float(np.max(np.abs(one[0]), where=np.isfinite(one[0]), initial=0.0))


def _rounding(one: Any, within: set[str]) -> float:
    return max(ALLOWED.get(dtype, 0.0) for dtype in {one[1], *within}) * _largest(one)


def _first(model: Any, data: Any) -> Any:
    try:
        return next(batching.batches(model, data, 32, None))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        said = str(error).replace("Argument `data`", "Argument `check`, as data,")
        raise kind(said) from error


def made_up(model: Any) -> Any:
    """Inputs of the shapes and dtypes that the model says it takes.

    Whole numbers are 0 and 1, which any table of embeddings has.
    """
    graph = graph_in(model)
    if graph is None:
        raise ValueError(
            "Argument `check` must be data where the model does not say what inputs it "
            f"takes. Received: check=True and model '{model.name}' of class "
            f"{type(model).__name__}"
        )
    random = np.random.default_rng(0)

    def one(tensor: Any) -> Any:
        shape = [SIZE if size is None else size for size in tensor.shape]
        shape[0] = 2 if tensor.shape[0] is None else tensor.shape[0]
        value: np.ndarray
        if "float" in tensor.dtype:
            value = random.normal(size=shape)
        elif tensor.dtype == "string":
            raise ValueError(
                "Argument `check` must be data where a model takes strings. Received: "
                f"check=True and model '{model.name}'"
            )
        else:
            value = random.integers(0, 2, shape)
        return keras.ops.convert_to_tensor(value, tensor.dtype)

    return keras.tree.map_structure(one, graph.input)
