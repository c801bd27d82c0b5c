"""Passes over data, of one process or of several, with a progress bar."""

from typing import Any

import keras

from keras_bn.ops.processes import Processes
from keras_bn.tools._graphs.walk import Layer
from keras_bn.tools._statistics import batching
from keras_bn.tools._statistics.probe import observed
from keras_bn.tools._statistics.together import Found, agreed_order


class Run:
    """Passes over the data.

    With `processes`, `data` are this one's part, which may be empty. It goes through
    them by itself, whatever the layers do in training, so that the parts may be uneven;
    then all take what all found.

    Attributes:
        batches: How many the last pass went through.
        samples: How many samples were in them.
    """

    batches: int
    samples: int

    def __init__(
        self,
        model: Any,
        data: Any,
        batch_size: int,
        steps: int | None,
        verbose: int,
        processes: Processes | None = None,
    ) -> None:
        self._model = model
        self._data = (data, batch_size, steps)
        self._verbose = verbose
        self._processes = processes

    def order(self, layers: dict[str, Layer]) -> list[str]:
        """The layers, in the order in which one batch comes to them."""
        seen: dict[str, None] = {}
        error = None
        try:
            with observed(
                layers,
                lambda path, *_: seen.setdefault(path),
                by_batch=False,
                alone=self._processes is not None,
            ):
                for batch in self._batches(1):
                    self._model(batch, training=False)
        except Exception as raised:
            if self._processes is None:
                raise
            error = raised
        order = list(seen)
        if self._processes is not None:
            order = agreed_order(self._processes, layers, order, error)
        _require_reached(layers, order)
        return order

    def through(
        self, layers: dict[str, Layer], moments: dict[str, Any], by_batch: bool
    ) -> dict[str, Any]:
        """Calls the model on every batch; `moments` of what `layers` saw, by path."""
        found = Found(layers, moments)
        if self._processes is None:
            self._through(found, layers, by_batch)
        else:
            error = None
            try:
                self._through(found, layers, by_batch)
            except Exception as raised:
                error = raised  # once the others know
            found = found.together(self._processes, error)
            batching.require_some(found.batches, None)
        _require_reached(layers, found.reached)
        self.batches, self.samples = found.batches, found.samples
        return found.moments

    def _through(self, found: Found, layers: dict[str, Layer], by_batch: bool) -> None:
        target = batching.length(self._model, *self._data)
        bar = keras.utils.Progbar(target, verbose=self._verbose, unit_name="batch")
        with observed(layers, found.see, by_batch, alone=self._processes is not None):
            for batch in self._batches(self._data[2]):
                self._model(batch, training=False)
                found.batches += 1
                found.samples += batching.samples_in(batch)
                bar.update(found.batches, finalize=False)
        if self._verbose:
            bar.update(found.batches, finalize=True)

    def _batches(self, steps: int | None) -> Any:
        data, batch_size, wanted = self._data
        may_be_empty = self._processes is not None and wanted is None
        return batching.batches(
            self._model, data, batch_size, steps, may_be_empty=may_be_empty
        )


def _require_reached(layers: dict[str, Layer], reached: Any) -> None:
    missing = sorted(set(layers) - set(reached))
    if missing:
        raise ValueError(
            "Argument `model` must call every batch normalization layer in inference. "
            f"Received: a model that does not call {missing} on these data"
        )
