"""Pure functions for people who write their own layers."""

from keras_bn.backend.interface import Moments, statistics_dtype
from keras_bn.ops.batch_norm import batch_norm_inference, batch_norm_train
from keras_bn.ops.merge import merge_moments
from keras_bn.ops.moving_average import moving_average
from keras_bn.ops.renorm import renorm_correction

__all__ = [
    "Moments",
    "batch_norm_inference",
    "batch_norm_train",
    "merge_moments",
    "moving_average",
    "renorm_correction",
    "statistics_dtype",
]
