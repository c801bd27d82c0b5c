"""Tools over models, one file a verb."""

from keras_bn.tools._findings import Finding
from keras_bn.tools._inspection import Inspection, LayerReport
from keras_bn.tools._plan import Folding
from keras_bn.tools.convert import convert
from keras_bn.tools.fold import FoldReport, fold
from keras_bn.tools.from_torch import from_torch
from keras_bn.tools.inspect import inspect
from keras_bn.tools.quantize_aware import quantize_aware
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
    "from_torch",
    "inspect",
    "quantize_aware",
    "recalibrate",
]
