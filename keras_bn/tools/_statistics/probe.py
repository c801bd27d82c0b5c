"""Runs a model with its batch norm layers under observation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from keras import ops

from keras_bn.layers.call_arguments import as_it_was
from keras_bn.ops import batch_norm_inference, batch_norm_train
from keras_bn.tools._graphs.walk import (
    Layer,
    activation_of,
    array,
    batch_norms,
    computes_plainly,
    float64,
    infers_by_batch,
    is_conditional,
    normalizes_by_batch,
    why_not_plainly,
)

_LEAST = 2.0**-126
"""The smallest normal float32."""

See = Callable[[str, Any, Any, Any], None] | None
"""Told of each call of a layer: `see(path, count, mean, variance)` of its batch."""


def observable(model: Any) -> dict[str, Layer]:
    """The batch norm layers of `model` whose statistics can be observed, by path.

    Raises:
        TypeError: As `batch_norms`.
        ValueError: As `batch_norms`; or all are subclasses with a `call` of their own.
    """
    found = batch_norms(model)
    plain = {
        path: layer
        for path, layer in found.items()
        if computes_plainly(layer) or is_conditional(layer)
    }
    if not plain:
        path, layer = next(iter(found.items()))
        raise ValueError(
            "Argument `model` must have a batch normalization layer that computes as "
            f"the base class does. Received: model with layer '{path}' of class "
            f"{type(layer).__name__}: {why_not_plainly(layer)}"
        )
    return plain


@contextmanager
def observed(
    layers: dict[str, Layer], see: See, by_batch: bool, alone: bool = False
) -> Iterator[None]:
    """Within, each call of one of `layers` tells `see` the moments of its input.

    With `by_batch`, the layers normalize by these moments, as in training; else by
    their moving statistics. Either way nothing is written, and all other layers run in
    the mode that the model is called in: dropout can stay off. With `see=None` nobody
    is told, and moments that nobody needs are not computed.

    The moments are those of all replicas where the layers' would be, unless `alone`.
    """
    try:
        for path, layer in layers.items():
            # Straight into the dictionary: Keras would track an attribute.
            observer = _Observer(path, layer, see, by_batch, alone)
            if is_conditional(layer):
                layer.__dict__["_normalize"] = observer.within_call
            else:
                layer.__dict__["call"] = observer
        yield
    finally:
        for layer in layers.values():
            for name in ("call", "_normalize"):
                layer.__dict__.pop(name, None)


class _Observer:
    """Stands in for the `call` of one layer."""

    def __init__(
        self, path: str, layer: Layer, see: See, by_batch: bool, alone: bool
    ) -> None:
        self._synchronized = layer.synchronized and not alone
        if not 0 <= layer.epsilon < float("inf"):
            raise ValueError(
                f"Layer '{path}' must have a finite epsilon that is not negative. "
                f"Received: epsilon={layer.epsilon}"
            )
        # Of Keras's layer it may be 0: then what shows only where nothing varies.
        self._epsilon = layer.epsilon or _LEAST
        self._path = path
        self._layer = layer
        self._see = see
        self._by_batch = by_batch

    def __call__(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        *,
        weights: Any = None,
        residual: Any = None,
    ) -> Any:
        layer = self._layer
        settings = {
            "axis": layer.axis,
            "epsilon": self._epsilon,
            "residual": as_it_was(residual),
        }
        # No gradient will be asked for.
        inputs = ops.stop_gradient(inputs)
        bare = is_conditional(layer)
        affine = [
            None if one is None or bare else ops.stop_gradient(one.value)
            for one in (layer.gamma, layer.beta)
        ]
        # A class whose `call` says training=True ignores the mode; a graph does not.
        by_batch = self._by_batch or (training and normalizes_by_batch(layer))
        by_batch = by_batch or infers_by_batch(layer)
        if by_batch or self._see is not None:
            y, moments = batch_norm_train(
                inputs,
                *affine,
                mask=mask,
                weights=as_it_was(weights),
                synchronized=self._synchronized,
                replica_groups=self._groups(),
                **settings,
            )
            if self._see is not None:
                self._see(self._path, *self._read(moments))
        if not by_batch:
            statistics = (layer.moving_mean, layer.moving_variance)
            y = batch_norm_inference(inputs, *statistics, *affine, **settings)
        activation = None if bare else activation_of(layer)
        if activation is not None:
            y = activation(y)
        # Without the gradient's bookkeeping, what came before can be freed at once.
        return ops.cast(ops.stop_gradient(y), layer.compute_dtype)

    def _groups(self) -> Any:
        groups = getattr(self._layer, "replica_groups", None)
        return groups if self._synchronized else None

    def within_call(self, inputs: Any, training: Any, mask: Any, *_: Any) -> Any:
        """Stands in for the normalization within a `call` that adds gamma and beta."""
        return self(inputs, training, mask)

    def _read(self, moments: Any) -> list[Any]:
        try:
            return [float64(one) for one in moments]
        except Exception as error:
            raise ValueError(
                f"Layer '{self._path}' cannot be observed: it runs inside a loop that "
                "the backend compiles, such as that of a recurrent cell. Received: "
                f"{type(error).__name__}"
            ) from error


@contextmanager
def restored_on_failure(model: Any) -> Iterator[None]:
    """Puts back, bit by bit, what a pass may move, if the body raises.

    All that is not trained, and all of the norms, whose statistics may be trainable.
    """
    norms = (v for layer in batch_norms(model).values() for v in layer.variables)
    moved = {id(v): v for v in (*model.non_trainable_variables, *norms)}
    saved = [(variable, array(variable)) for variable in moved.values()]
    try:
        yield
    except BaseException:  # an interrupt as well
        for variable, value in saved:
            variable.assign(value)
        raise
