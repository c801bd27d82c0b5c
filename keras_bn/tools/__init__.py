"""Tools over models, one file a verb."""

from keras_bn.tools.convert import convert
from keras_bn.tools.fold import Folding, FoldReport, fold
from keras_bn.tools.inspect import Finding, Inspection, LayerReport, inspect
from keras_bn.tools.recalibrate import Recalibrated, RecalibrationReport, recalibrate

__all__ = [
    "Finding",
    "FoldReport",
    "Folding",
    "Inspection",
    "LayerReport",
    "Recalibrated",
    "RecalibrationReport",
    "convert",
    "fold",
    "inspect",
    "recalibrate",
]
