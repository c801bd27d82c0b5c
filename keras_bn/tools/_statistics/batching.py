"""Data, in any form that `predict` takes, as batches that a model can be called on."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_bn.tools._graphs.walk import graph_in


def check_sizes(steps: Any, batch_size: Any) -> None:
    """Checks the two numbers that say how much data to take.

    Raises:
        ValueError: `steps` (which may be None) or `batch_size` is not above 0.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value is None and name == "steps":
            continue
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < 1:
            raise ValueError(
                f"Argument `{name}` must be an integer above 0. Received: "
                f"{name}={value!r}"
            )


def batches(
    model: Any,
    data: Any,
    batch_size: int,
    steps: int | None,
    *,
    may_be_empty: bool = False,
) -> Iterator[Any]:
    """The inputs of each batch that has samples, as tensors; at most `steps` of them.

    Raises:
        TypeError: `data` or a batch of it is not data.
        ValueError: A batch of a wrong shape; fewer batches than `steps`; none at all.
    """
    taken = 0
    for batch in _iterate(model, data, batch_size):
        if taken == steps:
            return
        inputs = _checked(model, batch)
        # There is nothing to learn from no samples, and TensorFlow has no convolution
        # of them.
        if samples_in(inputs):
            yield inputs
            taken += 1
    if not may_be_empty:
        require_some(taken, steps)


def check_arrays(
    model: Any,
    data: Any,
    batch_size: int,
    steps: int | None,
    *,
    may_be_empty: bool = False,
) -> None:
    """Checks the first batch, and how many there are, of data that are all there.

    Of others, a batch would have to be drawn.

    Raises:
        TypeError: It is not data.
        ValueError: It is of a wrong shape; fewer batches than `steps`; none at all.
    """
    if not _is_whole(model, data):
        return
    next(batches(model, data, batch_size, 1, may_be_empty=True), None)
    if not may_be_empty:
        require_some(length(model, data, batch_size, None) or 0, steps)


def require_some(taken: int, steps: int | None) -> None:
    """Checks that so many batches are enough.

    Raises:
        ValueError: They are fewer than `steps`, or none.
    """
    if taken == 0 or (steps is not None and taken < steps):
        raise ValueError(
            f"Argument `data` must have {'at least one' if steps is None else steps} "
            f"batch{'es' if steps and steps > 1 else ''}"
            f"{'' if steps is None else ', as `steps` says'}. Received: {taken}"
        )


def can_repeat(model: Any, data: Any) -> bool:
    """Whether `data` can be gone through more than once."""
    return _is_whole(model, data) or not isinstance(data, Iterator)


def length(model: Any, data: Any, batch_size: int, steps: int | None) -> int | None:
    """How many batches there will be; None where the data do not say."""
    if _is_whole(model, data):
        rows = len(tree.flatten(_inputs_of(model, data))[0])
        known: int | None = -(-rows // batch_size)
    elif isinstance(data, keras.utils.PyDataset):
        known = data.num_batches
    else:
        known = len(data) if hasattr(data, "__len__") else None
    return known if steps is None or known is None else min(known, steps)


def samples_in(batch: Any) -> int:
    """The number of samples in a batch of inputs."""
    return tree.flatten(batch)[0].shape[0]  # type: ignore[no-any-return]


def _is_whole(model: Any, data: Any) -> bool:
    """Whether `data` is all the data at once, not something that gives batches."""
    if hasattr(data, "shape") or isinstance(data, (tuple, Mapping)):
        return True
    several = len(getattr(model, "inputs", None) or ())
    return isinstance(data, list) and len(data) == several > 1


def check_data(data: Any) -> None:
    """Checks, without a look at the values, that these may be data.

    Raises:
        TypeError: They are not.
    """
    if hasattr(data, "shape"):
        known = len(data.shape) > 0
    else:
        known = isinstance(data, Iterable) and not isinstance(data, (str, bytes))
    if not known:
        raise TypeError(
            "Argument `data` must be an array, a dictionary or tuple of arrays, or an "
            "iterable of batches such as a tf.data.Dataset, a DataLoader or a "
            f"keras.utils.PyDataset. Received: data of type {type(data).__name__}"
        )


def _iterate(model: Any, data: Any, batch_size: int) -> Iterator[Any]:
    check_data(data)
    if _is_whole(model, data):
        inputs = _inputs_of(model, data)
        sizes = {len(one) for one in tree.flatten(inputs)}
        if len(sizes) > 1:
            raise ValueError(
                "Argument `data` must have inputs of one number of samples. Received: "
                f"inputs of {sorted(sizes)} samples"
            )
        for start in range(0, sizes.pop(), batch_size):
            stop = start + batch_size
            yield tree.map_structure(lambda one: one[start:stop], inputs)  # noqa: B023
    else:
        for batch in data:
            yield _inputs_of(model, batch)


def _inputs_of(model: Any, batch: Any) -> Any:
    """The inputs out of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
    if isinstance(batch, tuple):
        batch = batch[0] if batch else batch
    elif isinstance(batch, list):
        # A DataLoader makes lists of (x, y); a model of many inputs has lists of x.
        several = len(getattr(model, "inputs", None) or ())
        batch = batch if several > 1 and len(batch) == several else batch[0]
    return _by_name(model, batch) if isinstance(batch, Mapping) else batch


def input_names(model: Any) -> list[str]:
    """The names of a model's inputs in a dictionary; none where it does not say."""
    structure = _structure(model)
    if isinstance(structure, Mapping):
        return list(structure)
    return [one.name for one in tree.flatten(structure)]


def _by_name(model: Any, named: Mapping[str, Any]) -> Any:
    """The inputs in a dictionary, as Keras takes them: in the model's own structure.

    What is in it beyond them stays out.
    """
    structure, names = _structure(model), input_names(model)
    missing = [name for name in names if name not in named]
    if missing:
        raise ValueError(
            f"Argument `data` must have all inputs of the model by name, {names}. "
            f"Received: a dictionary of {list(named)}, without {missing}"
        )
    if not names:
        return named
    if isinstance(structure, Mapping):
        return {name: named[name] for name in names}
    return tree.pack_sequence_as(structure, [named[name] for name in names])


def _structure(model: Any) -> Any:
    """The symbolic inputs of a model, as it was given them; () where it has none."""
    graph = graph_in(model)
    return () if graph is None else graph.input


def _checked(model: Any, batch: Any) -> Any:
    """`batch` as tensors of the shapes that the model takes."""
    try:
        batch = tree.map_structure(_tensor, batch)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "Argument `data` must hold arrays of numbers. Received: a batch of type "
            f"{type(batch).__name__}: {error}"
        ) from error
    inputs = getattr(model, "inputs", None) or ()
    expected = [one.shape for one in inputs]
    received = [tuple(one.shape) for one in tree.flatten(batch)]
    fits = len(expected) == len(received) and all(map(_fits, received, expected))
    if not received or (expected and not fits):
        raise ValueError(
            "Argument `data` must give batches of the shape that the model takes, "
            f"{_listed(expected)}. Received: a batch of shape {_listed(received)}"
        )
    for one, taken in zip(tree.flatten(batch), inputs, strict=False):
        # Keras would drop the imaginary part; a model without a graph sees it itself.
        if "complex" in str(one.dtype) and "complex" not in taken.dtype:
            raise TypeError(
                "Argument `data` must hold real numbers, as the model takes them. "
                f"Received: a batch of dtype {one.dtype}"
            )
    return batch


def _tensor(one: Any) -> Any:
    if not ops.is_tensor(one):
        one = np.asarray(one)
        if one.dtype.kind in "OSU":
            raise TypeError(f"{one.dtype} is not a type of number")
    return ops.convert_to_tensor(one)


def _fits(received: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(received) == len(expected) and all(
        other in (None, one) for one, other in zip(received, expected, strict=True)
    )


def _listed(shapes: list[Any]) -> str:
    return " and ".join(map(str, shapes)) or "unknown"
