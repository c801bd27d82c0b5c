"""Tools over models, one file a verb."""

from keras_bn.tools.convert import convert

__all__ = ["convert"]
