"""Tools over models, one file a verb."""

from keras_bn.tools.convert import convert
from keras_bn.tools.fold import Folding, FoldReport, fold

__all__ = ["FoldReport", "Folding", "convert", "fold"]
