"""Batch normalization whose gamma and beta depend on the sample."""

from typing import Any

import keras
from keras import activations, backend, ops

from keras_bn._keras import attached_mask
from keras_bn.layers.batch_normalization import BatchNormalization, Shape
from keras_bn.layers.call_arguments import as_it_was
from keras_bn.ops import _arguments, _rows, _settings, statistics_dtype
from keras_bn.ops.batch_norm import Prepared, as_tensor


@keras.saving.register_keras_serializable(package="keras_bn")
class ConditionalBatchNormalization(BatchNormalization):
    """Batch normalization with a gamma and beta for each sample.

    For sample i, with mean and variance taken as `BatchNormalization` takes them, over
    all samples of whatever class:

        y[i] = gamma[i] * (x[i] - mean) / sqrt(variance + epsilon) + beta[i]

    Gamma and beta come with the call, from a network of their own; or, with `classes`,
    from a table that the layer learns, by the class of the sample:

        y[i] = gamma[labels[i]] * (x[i] - mean) / sqrt(variance + epsilon)
               + beta[labels[i]]

    The moving statistics are as shared as the batch's: those of all classes mixed as in
    training. A batch of one class alone has others. Where they should be its own, use
    `DomainBatchNormalization`.

    Args:
        classes: Integer, how many classes there are; None for a gamma and beta that
            come with the call.
        axis: Integer, the feature axis, or a list or tuple of them, not the batch's.
        **kwargs: The other arguments of `BatchNormalization`. With `classes`, the
            initializers, regularizers and constraints of gamma and beta are for the
            tables, of shape `(classes, channels)`: all 1, and all 0. With
            `scale=False` there is no gamma, with `center=False` no beta.

    Call arguments:
        inputs: Tensor of rank 2 or more, as for `BatchNormalization`.
        labels: With `classes`: tensor of an integer dtype and shape `(batch,)`, as of
            `keras.Input((), dtype="int32")`; or one integer for the whole batch.
        training: Whether to use (and average) the statistics of the batch.
        mask: Boolean tensor, as for `BatchNormalization`.
        gamma: Without `classes`: tensor of shape `(batch, channels)`, or of that of
            `inputs` with all averaged axes but the batch's set to 1, where there are
            several feature axes; None for 1.
        beta: The same of the offset; None for 0.

    Returns:
        Tensor of the shape of `inputs`, in the layer's compute dtype, after the
        activation, if any. The samples of a class that is out of range are NaN in a
        graph, or where the labels lie on an accelerator.

    Raises:
        TypeError: `labels` are no integers; and as `BatchNormalization`.
        ValueError: A label is out of range, wherever a look at it costs nothing;
            labels without `classes`, or gamma or beta with it, or nothing of the kind;
            one of them of another shape; and as `BatchNormalization`. A call that
            raises leaves every weight as it was.

    Gamma and beta are applied in float32, or wider, to normalized values that are
    rounded to the compute dtype.

    Reference:
        [De Vries et al., 2017](https://arxiv.org/abs/1707.00683), equation 5;
        [Dumoulin et al., 2017](https://arxiv.org/abs/1610.07629), whose statistics are
        those of each image. With `classes`, it is the norm of
        [Miyato and Koyama, 2018](https://arxiv.org/abs/1802.05637).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> x = np.array([[1.0], [3.0]], "float32")
    >>> layer = keras_bn.ConditionalBatchNormalization(epsilon=1e-6)
    >>> y = layer(x, gamma=np.array([[1.0], [10.0]]), training=True)
    >>> np.round(keras.ops.convert_to_numpy(y), 2).tolist()
    [[-1.0], [10.0]]
    >>> layer = keras_bn.ConditionalBatchNormalization(classes=5)
    >>> y = layer(x, np.array([4, 0]), training=True)
    >>> tuple(layer.gamma.shape), tuple(layer.moving_mean.shape)
    ((5, 1), (1,))
    """

    def __init__(
        self,
        classes: int | None = None,
        axis: int | list[int] | tuple[int, ...] = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, **kwargs)
        if classes is not None:
            classes = _settings.positive_integer("classes", classes)
        self.classes: Any = classes
        if not (self.scale or self.center):
            raise ValueError(
                "Arguments `scale` and `center` must not both be False: there would be "
                "nothing to condition. Received: scale=False, center=False"
            )

    def build(self, input_shape: Shape) -> None:
        """Creates the weights: tables of gamma and beta, and moving statistics."""
        _arguments.require_one_tensor(input_shape)
        if 0 in _arguments.resolve_axes(self.axis, input_shape).features:
            raise ValueError(
                "Argument `axis` must not name the batch's axis, along which gamma and "
                f"beta differ. Received: axis={self.axis} with input shape "
                f"{tuple(input_shape)}"
            )
        super().build(input_shape)

    def _add_parameter(self, name: str, shape: Shape, initializer: Any) -> Any:
        if self.classes is None:
            return None
        shape = (self.classes, *self._row_shape)
        return super()._add_parameter(name, shape, initializer)

    @property
    def _row_shape(self) -> Shape:
        """The shape of one sample's gamma, without the batch's axis."""
        shape: Shape = self._parameter_shape
        return shape if len(shape) == 1 else shape[1:]

    _along = ("gamma", "beta")

    def __call__(self, inputs: Any, labels: Any = None, **kwargs: Any) -> Any:
        """Calls the layer; see the class."""
        if labels is not None:
            known = not (ops.is_tensor(labels) or backend.is_keras_tensor(labels))
            if known and self.classes is not None:
                # Before Keras makes a tensor of it, where 2 ** 32 may be 0.
                labels = _rows.row_number("labels", labels, self.classes)
            # Keras lets nothing but tensors pass by position.
            kwargs["labels"] = labels
        return super().__call__(inputs, **kwargs)

    def compute_output_spec(  # type: ignore[override]
        self,
        inputs: Any,
        labels: Any = None,
        training: bool | None = None,
        mask: Any = None,
        *,
        gamma: Any = None,
        beta: Any = None,
    ) -> Any:
        """The output in a functional model, whose mistakes show here, not in `fit`."""
        self._check_inputs(inputs, mask)
        self._check_condition(inputs, labels, gamma, beta)
        if backend.is_keras_tensor(labels):
            _rows.integer_dtype("labels", labels)
        elif labels is not None:
            _rows.row_number("labels", labels, self.classes)
        return keras.layers.Layer.compute_output_spec(
            *(self, inputs, labels),
            training=training,
            mask=mask,
            gamma=gamma,
            beta=beta,
        )

    def call(  # type: ignore[override]
        self,
        inputs: Any,
        labels: Any = None,
        training: bool | None = None,
        mask: Any = None,
        *,
        gamma: Any = None,
        beta: Any = None,
    ) -> Any:
        """Normalizes `inputs`; see the class."""
        gamma, beta = map(as_it_was, (gamma, beta))
        self._check_condition(inputs, labels, gamma, beta)
        if labels is not None:
            labels = _rows.row_number("labels", labels, self.classes)
            gamma, beta = (self._of_classes(w, labels) for w in (self.gamma, self.beta))
        mask = attached_mask(inputs) if mask is None else mask
        y = self._normalize(inputs, training, mask, self._statistics())
        dtype = statistics_dtype(self.compute_dtype)
        y = as_tensor(y, dtype)
        if gamma is not None:
            y = y * self._spread(gamma, y, dtype)
        if beta is not None:
            y = y + self._spread(beta, y, dtype)
        return as_tensor(self.activation(y), self.compute_dtype)

    def _check_condition(self, inputs: Any, labels: Any, gamma: Any, beta: Any) -> None:
        given = {"labels": labels, "gamma": gamma, "beta": beta}
        given = {name: value for name, value in given.items() if value is not None}
        wanted = ("gamma", "beta") if self.classes is None else ("labels",)
        if not given or not given.keys() <= set(wanted):
            raise ValueError(
                f"Argument{'s' if len(wanted) > 1 else ''} `{'` or `'.join(wanted)}` "
                f"must be given, and no other condition, with classes={self.classes}. "
                f"Received: {' and '.join(given) or 'none of them'}"
            )
        for name, setting in (("gamma", "scale"), ("beta", "center")):
            if name in given and not getattr(self, setting):
                raise ValueError(
                    f"Argument `{name}` must be None in a layer without it. Received: "
                    f"{name} with {setting}=False"
                )
        for name, value in given.items():
            self._check_shape(name, value, inputs)

    def _check_shape(self, name: str, value: Any, inputs: Any) -> None:
        if name == "labels" and not getattr(value, "shape", ()):
            return  # one class for all samples
        if not hasattr(value, "shape"):
            raise TypeError(
                f"Argument `{name}` must be a tensor or an array. "
                f"Received: {name} of type {type(value).__name__}"
            )
        batch = inputs.shape[0]
        expected = (batch,) if name == "labels" else (batch, *self._row_shape)
        shape = tuple(value.shape)
        if len(shape) != len(expected) or any(
            None not in (one, other) and one != other
            for one, other in zip(shape, expected, strict=True)
        ):
            raise ValueError(
                f"Argument `{name}` must have shape {expected}, for inputs of shape "
                f"{tuple(inputs.shape)}. Received: {name} of shape {shape}"
            )
        if name != "labels":
            _arguments.real_dtype(name, value)

    def _of_classes(self, table: Any, labels: Any) -> Any:
        if table is None:
            return None
        rows = _rows.take_rows(table.value, labels)
        return rows if len(rows.shape) == len(table.shape) else ops.expand_dims(rows, 0)

    def _spread(self, parameter: Any, y: Any, dtype: str) -> Any:
        """A gamma or beta a sample, in a shape that broadcasts to y."""
        parameter = as_tensor(parameter, dtype)
        features = self._axes(y.shape).features
        if len(features) > 1:
            return parameter
        shape: list[Any] = [1] * len(y.shape)
        shape[0], shape[features[0]] = -1, self._row_shape[0]
        return ops.reshape(parameter, shape)

    def _parameter(
        self, name: str, given: Prepared, statistics: Any, default: float
    ) -> Any:
        # The kernels normalize, and no more: they know one gamma for all samples.
        return given.parameter(name, None, default)

    @property
    def _fused_activation(self) -> Any:
        return activations.linear

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialized."""
        return {**super().get_config(), "classes": self.classes}
