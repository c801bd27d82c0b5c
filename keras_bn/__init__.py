"""Batch normalization for Keras 3, the same on TensorFlow, JAX and PyTorch."""

from keras_bn import backend, layers, models, ops
from keras_bn.layers import BatchNormalization

__version__ = "0.1.0"

__all__ = ["BatchNormalization", "__version__", "backend", "layers", "models", "ops"]
