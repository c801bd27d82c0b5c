"""Rounding to eight bits and back, as deployed integer arithmetic will do it."""

from typing import Any

import keras
from keras import backend, ops

from keras_bn.layers.no_update import updates_stopped
from keras_bn.ops import moving_average, statistics_dtype
from keras_bn.ops._settings import momentum_in_range
from keras_bn.ops.moving_average import recomputing

LARGEST = 127
"""Weights are whole numbers from -127 to 127: symmetric, as LiteRT wants them."""

LEVELS = 255
"""Steps between the smallest and the largest number that an activation may have."""


def fake_quantize_weights(weights: Any, axes: tuple[int, ...] | None) -> Any:
    """`weights` rounded to 255 levels, symmetric around 0.

        step = max(abs(weights)) / 127
        y    = step * round(weights / step)

    The gradient is that of the identity (the straight-through estimator): with the
    range taken from the weights themselves, none is clipped.

    Args:
        weights: Float tensor.
        axes: The axes that share a step; None for all.

    Returns:
        Tensor of the shape and dtype of `weights`.

    Reference:
        [Jacob et al., 2018](https://arxiv.org/abs/1712.05877), section 3.
    """
    fixed = ops.stop_gradient(weights)
    largest = ops.max(ops.abs(fixed), axis=axes, keepdims=True)
    step = ops.where(largest > 0, largest / LARGEST, ops.ones_like(largest))
    return weights + (ops.round(fixed / step) * step - fixed)


def fake_quantize_activations(x: Any, minimum: Any, maximum: Any) -> Any:
    """`x` rounded to 256 levels between two numbers, one of them exactly 0.

        step = (maximum - minimum) / 255
        zero = round(-minimum / step)
        y    = step * (clip(round(x / step) + zero, 0, 255) - zero)

    The gradient is that of the identity where nothing was clipped, else 0.

    Args:
        x: Float tensor.
        minimum: Scalar tensor of the dtype of `x`, at most 0.
        maximum: Scalar tensor of the dtype of `x`, at least 0.

    Returns:
        Tensor of the shape and dtype of `x`; `x` itself where the range is empty.

    Reference:
        [Jacob et al., 2018](https://arxiv.org/abs/1712.05877), section 3.1.
    """
    fixed = ops.stop_gradient(x)
    width = maximum - minimum
    step = ops.where(width > 0, width / LEVELS, ops.ones_like(width))
    zero = ops.round(-minimum / step)
    whole = ops.round(fixed / step)
    clipped = ops.clip(whole, -zero, LEVELS - zero)
    passed = ops.where(clipped == whole, x, fixed)
    return ops.where(width > 0, passed + (clipped * step - fixed), x)


@keras.saving.register_keras_serializable(package="keras_bn")
class FakeQuantize(keras.layers.Layer):  # type: ignore[misc]
    """Rounds its input to the 256 levels that an int8 activation will have.

    The range is a moving average of each training batch's smallest and largest value,
    with 0 always within it; the first batch sets it. Until then the layer hands its
    input on.

    Args:
        momentum: Number in [0, 1]: the share of the range that is kept at each step.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    `trainable = False`, and `keras_bn.no_update()`, keep the range as it is.
    """

    def __init__(self, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.momentum = momentum_in_range("momentum", momentum)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Creates the range, and whether there is one yet."""
        for name in ("minimum", "maximum", "observed"):
            weight = self.add_weight(
                name=name,
                initializer="zeros",
                dtype=statistics_dtype(self.variable_dtype),
                trainable=False,
                autocast=False,
                aggregation="mean",
            )
            setattr(self, name, weight)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the input."""
        return input_shape

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """The shape and dtype of the input."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer_call` itself: JAX lets no update out of a recomputed call."""
        return layer_call

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Rounds `inputs`; see the class."""
        dtype = inputs.dtype
        if not backend.is_float_dtype(dtype):
            return inputs  # whole numbers have their levels already
        x = ops.cast(inputs, statistics_dtype(dtype))
        if training and self.trainable:
            self._observe(x)
        bounds = (ops.cast(one.value, x.dtype) for one in (self.minimum, self.maximum))
        return ops.cast(fake_quantize_activations(x, *bounds), dtype)

    def _observe(self, x: Any) -> None:
        if updates_stopped() or recomputing(x, self.minimum.value):
            return
        fixed = ops.stop_gradient(x)
        bounds = (ops.min(fixed, initial=0.0), ops.max(fixed, initial=0.0))
        usable = ops.isfinite(bounds[0]) & ops.isfinite(bounds[1])
        first = usable & (self.observed.value == 0)
        for weight, bound in zip((self.minimum, self.maximum), bounds, strict=True):
            kept = ops.where(first, bound, weight.value)
            weight.assign(moving_average(kept, bound, self.momentum, usable))
        self.observed.assign(
            ops.where(usable, ops.ones_like(self.observed.value), self.observed.value)
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum}
