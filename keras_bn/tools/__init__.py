"""Tools over models, one file a verb."""

from keras_bn.tools._folding.plan import Folding
from keras_bn.tools._foreign.pairs import Matching, Pair
from keras_bn.tools._reports.findings import Finding
from keras_bn.tools._reports.inspection import Inspection, LayerReport
from keras_bn.tools.average_statistics import (
    Averaged,
    AverageReport,
    average_statistics,
)
from keras_bn.tools.convert import convert
from keras_bn.tools.fold import FoldReport, fold
from keras_bn.tools.from_flax import from_flax, match_flax
from keras_bn.tools.from_haiku import from_haiku, match_haiku
from keras_bn.tools.from_torch import from_torch, match_torch
from keras_bn.tools.inspect import inspect
from keras_bn.tools.quantize_aware import quantize_aware
from keras_bn.tools.recalibrate import Recalibrated, RecalibrationReport, recalibrate
from keras_bn.tools.to_torch import to_torch

__all__ = [
    "AverageReport",
    "Averaged",
    "Finding",
    "FoldReport",
    "Folding",
    "Inspection",
    "LayerReport",
    "Matching",
    "Pair",
    "Recalibrated",
    "RecalibrationReport",
    "average_statistics",
    "convert",
    "fold",
    "from_flax",
    "from_haiku",
    "from_torch",
    "inspect",
    "match_flax",
    "match_haiku",
    "match_torch",
    "quantize_aware",
    "recalibrate",
    "to_torch",
]
