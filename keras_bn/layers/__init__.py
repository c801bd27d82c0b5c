"""Keras layers."""

from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.conditional_batch_normalization import (
    ConditionalBatchNormalization,
)
from keras_bn.layers.domain_batch_normalization import DomainBatchNormalization
from keras_bn.layers.no_update import no_update

__all__ = [
    "BatchNormalization",
    "ConditionalBatchNormalization",
    "DomainBatchNormalization",
    "no_update",
]
