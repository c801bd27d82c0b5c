"""Batch normalization for Keras 3, the same on TensorFlow, JAX and PyTorch."""

from keras_bn import backend, callbacks, layers, models, ops, tools
from keras_bn.layers import (
    BatchNormalization,
    ConditionalBatchNormalization,
    DomainBatchNormalization,
    no_update,
)
from keras_bn.tools import (
    average_statistics,
    convert,
    fold,
    from_flax,
    from_haiku,
    from_torch,
    inspect,
    quantize_aware,
    recalibrate,
    to_torch,
)

__version__ = "0.1.0"

__all__ = [
    "BatchNormalization",
    "ConditionalBatchNormalization",
    "DomainBatchNormalization",
    "__version__",
    "average_statistics",
    "backend",
    "callbacks",
    "convert",
    "fold",
    "from_flax",
    "from_haiku",
    "from_torch",
    "inspect",
    "layers",
    "models",
    "no_update",
    "ops",
    "quantize_aware",
    "recalibrate",
    "to_torch",
    "tools",
]
