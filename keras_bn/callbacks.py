"""Callbacks that keep batch norm's statistics right during `fit`, and watch them."""

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_bn.tools import recalibrate
from keras_bn.tools._graphs.walk import (
    COUNTS,
    RENORM_STATISTICS,
    STATISTICS,
    array,
    infers_by_batch,
    is_built,
    normalizes_by_batch,
)
from keras_bn.tools._reports.findings import FAR
from keras_bn.tools._statistics.batching import (
    check_arrays,
    check_data,
    check_sizes,
)
from keras_bn.tools._statistics.probe import observable
from keras_bn.tools._statistics.settings import (
    check_repeats,
    check_settings,
    checked_threshold,
)
from keras_bn.tools.inspect import measure
from keras_bn.tools.recalibrate import chosen

__all__ = ["Monitor", "Recalibrate"]

MOMENTS = ("validation", "epoch", "end")


class Recalibrate(keras.callbacks.Callback):  # type: ignore[misc]
    """Recalibrates the moving statistics before validation and when training ends.

    Averaged weights (`use_ema=True` in the optimizer, `keras.callbacks.SwapEMAWeights`)
    leave batch norm's moving statistics behind: these belong to the weights of the last
    steps, not to the average. This callback computes them for the weights that are in
    the model when they are needed:

    - `"validation"`: from before each validation until after it;
    - `"epoch"`: from the end of each epoch until the next begins, for callbacks such
      as `ModelCheckpoint` that save then;
    - `"end"`: when training ends, for good, after an optimizer with `use_ema=True` has
      put the averaged weights in.

    After a validation or an epoch the statistics of training come back, so that
    training goes on as it would have without the callback.

    In the list of callbacks, put `SwapEMAWeights` before this one, and
    `ModelCheckpoint` after it.

    Args:
        data: As for `keras_bn.recalibrate`: training inputs that one can go through
            again and again.
        when: One or several of `"validation"`, `"epoch"` and `"end"`.
        **arguments: Arguments of `keras_bn.recalibrate`, such as `steps`. No progress
            bar is shown unless `verbose=1` is among them.

    Raises:
        TypeError: An argument that `recalibrate` does not have, or of a wrong type.
        ValueError: `when` is not among these, or an argument not as `recalibrate` says;
            when training begins, the model, or arrays that do not fit it; while
            training, as `recalibrate`.

    Reference:
        [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), section 3.2, on
        averaged weights and batch norm.

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_bn.BatchNormalization(), keras.layers.Dense(1)]
    ... )
    >>> model.compile(keras.optimizers.SGD(use_ema=True), loss="mse")
    >>> callback = keras_bn.callbacks.Recalibrate(x, when="end")
    >>> history = model.fit(x, y, callbacks=[callback], verbose=0)
    >>> model.layers[0].moving_mean.numpy().tolist()
    [1.0, 1.0]
    """

    def __init__(
        self,
        data: Any,
        when: str | Iterable[str] = ("validation", "end"),
        **arguments: Any,
    ) -> None:
        super().__init__()
        several = when if isinstance(when, Iterable) else ()
        self.when = {when} if isinstance(when, str) else set(several)
        if not self.when or not self.when <= set(MOMENTS):
            raise ValueError(
                f"Argument `when` must be one or several of {MOMENTS}. Received: "
                f"when={when!r}"
            )
        check_data(data)
        self._data = data
        self._arguments = _settings({"verbose": 0, **arguments})
        self._training_statistics: list[tuple[Any, Any]] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks the model and the data: not only when all the training is done."""
        if not is_built(self.model):  # TensorFlow does so with the first batch
            return
        # What is frozen now may train by then.
        chosen(self.model, include_frozen=True)
        settings = self._arguments
        check_repeats(self.model, self._data, settings["layer_by_layer"])
        batch_size, steps = settings["batch_size"], settings["steps"]
        part = settings["synchronized"] and steps is None
        check_arrays(self.model, self._data, batch_size, steps, may_be_empty=part)

    def on_test_begin(self, logs: Any = None) -> None:
        """Recalibrates for the validation that starts."""
        if "validation" in self.when:
            self._recalibrate_for_now()

    def on_test_end(self, logs: Any = None) -> None:
        """Puts the statistics of training back."""
        self._put_back()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Puts the statistics of training back."""
        self._put_back()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Recalibrates for callbacks that save the model."""
        if "epoch" in self.when:
            self._recalibrate_for_now()

    def on_train_end(self, logs: Any = None) -> None:
        """Recalibrates for good."""
        if "end" in self.when:
            self._put_back()
            recalibrate(self.model, self._data, **self._arguments)

    def _recalibrate_for_now(self) -> None:
        self._put_back()
        saved = [
            (variable, array(variable))
            for layer in observable(self.model).values()
            for name in (*STATISTICS, *RENORM_STATISTICS, *COUNTS)
            if (variable := getattr(layer, name, None)) is not None
        ]
        recalibrate(self.model, self._data, **self._arguments)
        self._training_statistics = saved

    def _put_back(self) -> None:
        for variable, value in self._training_statistics or ():
            variable.assign(value)
        self._training_statistics = None


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `recalibrate` but the model and the data, checked."""
    names = inspect.signature(recalibrate).parameters
    known = {n: one.default for n, one in names.items() if n not in ("model", "data")}
    for name in given:
        if name not in known:
            raise TypeError(
                f"`{name}` is not an argument that `recalibrate` can be given here. "
                f"Expected one of {list(known)}. Received: {name}={given[name]!r}"
            )
    settings = {**known, **given}
    check_settings(**settings)
    return settings


class Monitor(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs, each epoch, how far the moving statistics are from those of some data.

    The distance is that of `keras_bn.inspect`: the root mean square change of a layer's
    normalized output between training and inference mode. Each layer's is in the logs
    as `bn_distance/<layer>`, the largest as `bn_distance`, where `History`,
    `CSVLogger`, `TensorBoard` and `EarlyStopping` see them if they come later in the
    list of callbacks. Frozen layers (`trainable=False` or `freeze_statistics=True`),
    which training and inference use alike, are left out, and so are layers whose
    inference does not use them (`inference_statistics="batch"`).

    Args:
        data: Training inputs, as for `keras_bn.inspect`. A few hundred samples do.
        steps: How many batches to take; all of them if None.
        batch_size: Samples a batch, where `data` are arrays; best that of training.
        threshold: The distance from which inference is said to lag behind training.

    Raises:
        TypeError: `data` are not data, `threshold` is not a number.
        ValueError: `steps`, `batch_size` or `threshold` is not above 0; when training
            begins, arrays that do not fit the model; while training, as `inspect`.

    Warns:
        UserWarning: Once, when a distance first reaches `threshold`, naming the layer.

    Reference:
        [Dowson and Landau, 1982](https://doi.org/10.1016/0047-259X(82)90077-X).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> x, y = np.zeros((8, 2), "float32"), np.ones((8, 1), "float32")
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_bn.BatchNormalization(name="bn")]
    ... )
    >>> model.compile("sgd", "mse")
    >>> monitor = keras_bn.callbacks.Monitor(x, threshold=2.0)
    >>> history = model.fit(x, x, callbacks=[monitor], verbose=0)
    >>> sorted(history.history)
    ['bn_distance', 'bn_distance/bn', 'loss']
    """

    def __init__(
        self,
        data: Any,
        steps: int | None = None,
        batch_size: int = 128,
        threshold: float = FAR,
    ) -> None:
        super().__init__()
        check_data(data)
        check_sizes(steps, batch_size)
        self._data = data
        self._steps = steps
        self._batch_size = batch_size
        self._threshold = checked_threshold(threshold)
        self._warned = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks the data: not only when the first epoch is done."""
        check_arrays(self.model, self._data, self._batch_size, self._steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the distances to `logs`."""
        distances, _ = measure(self.model, self._data, self._steps, self._batch_size)
        layers = observable(self.model)
        trained = {
            p: one
            for p, one in distances.items()
            if normalizes_by_batch(layers[p]) and not infers_by_batch(layers[p])
        }
        if not trained:  # frozen layers use one set of statistics in both modes
            return
        worst = max(trained, key=lambda path: trained[path])
        if logs is not None:
            logs["bn_distance"] = trained[worst]
            logs.update({f"bn_distance/{p}": one for p, one in trained.items()})
        if trained[worst] >= self._threshold and not self._warned:
            self._warned = True
            warnings.warn(
                f"After epoch {epoch + 1}, the moving statistics of layer '{worst}' "
                f"are {trained[worst]:.2f} standard deviations from those of the "
                "data: inference lags behind training. Lower the momentum, or "
                "recalibrate.",
                UserWarning,
                stacklevel=2,
            )
