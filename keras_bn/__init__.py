"""Batch normalization for Keras 3, the same on TensorFlow, JAX and PyTorch."""

from keras_bn import backend, layers, ops
from keras_bn.layers import BatchNormalization, no_update

__version__ = "0.1.0"

__all__ = [
    "BatchNormalization",
    "__version__",
    "backend",
    "layers",
    "no_update",
    "ops",
]
