"""What stands in the place of a folded batch norm where somebody's code calls it."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_bn")
class Folded(keras.layers.Layer):  # type: ignore[misc]
    """Hands its input on, or the activation of it, and takes batch norm's arguments.

    Args:
        activation: The activation that was fused into the batch norm, if any.
        **kwargs: Keyword arguments of `keras.layers.Layer`.
    """

    def __init__(self, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.supports_masking = True

    def call(
        self, inputs: Any, training: Any = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        """`activation(inputs)`; what else batch norm is called with does not count."""
        return self.activation(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "activation": activation}
