"""Keras layers."""

from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.no_update import no_update

__all__ = ["BatchNormalization", "no_update"]
