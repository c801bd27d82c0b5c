"""What the Triton kernels are tested on, and what the oracle makes of it."""

import sys
from typing import NamedTuple

import keras
import numpy as np

import oracle
from keras_bn.backend.interface import Axes

# Triton is made for Linux alone.
SERVED = keras.backend.backend() == "torch" and sys.platform == "linux"
if SERVED:
    import torch

    from keras_bn.backend import torch_cuda

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

EPSILON = 1e-3

# As float64 NumPy has them: y and dy/dz.
ACTIVATIONS = {
    None: (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0), lambda z: z > 0),
    "relu6": (lambda z: np.clip(z, 0, 6), lambda z: (z > 0) & (z < 6)),
    "leaky_relu": (
        lambda z: np.where(z > 0, z, 0.2 * z),
        lambda z: np.where(z > 0, 1, 0.2),
    ),
    "elu": (
        lambda z: np.where(z > 0, z, np.expm1(z)),
        lambda z: np.where(z > 0, 1, np.exp(z)),
    ),
    "selu": (
        lambda z: 1.05070098735 * np.where(z > 0, z, 1.67326324235 * np.expm1(z)),
        lambda z: 1.05070098735 * np.where(z > 0, 1, 1.67326324235 * np.exp(z)),
    ),
    "sigmoid": (
        lambda z: 1 / (1 + np.exp(-z)),
        lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
    ),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
}

# How far results may be off, as a share of the largest: a few roundings of float32,
# and one to the dtype of the input. The interpreter cuts bfloat16 off.
LIMITS = {"float32": 3e-6, "bfloat16": 2**-7, "float16": 2**-11 + 3e-6}


class Case(NamedTuple):
    """An input. `order` lists its axes as they lie in memory; None: one by one."""

    shape: tuple[int, ...]
    axis: int
    mean: float = 0.0
    dtype: str = "float32"
    activation: str | None = None
    order: tuple[int, ...] | None = None

    def tensor(self, values):
        tensor = torch.tensor(values, device=DEVICE)
        tensor = tensor.to(getattr(torch, self.dtype))
        if self.order is None:
            return tensor
        back = np.argsort(self.order).tolist()
        return tensor.permute(self.order).contiguous().permute(back)


# Pairwise: rank, layout, raggedness, mean, dtype and activation.
CASES = {
    "rank 2": Case((150, 70), 1, 1e4, "float32", "relu"),
    "rank 2, half": Case((130, 16), 1, 0.0, "bfloat16", "tanh"),
    "one sample": Case((1, 5), 1, 0.0, "float32", "relu"),
    "one sample, far": Case((1, 1, 1, 3), 3, 1e5, "bfloat16", None),
    "one value": Case((1, 1), 1, 1e4, "float32", "elu"),
    "one channel": Case((6, 300, 1), 2, 1e5, "float32", "leaky_relu"),
    "one channel first": Case((6, 1, 300), 1, 0.0, "float16", "selu"),
    "rank 3 last": Case((5, 33, 12), 2, 0.0, "float16", "relu6"),
    "rank 3 first": Case((16, 3, 17), 1, 1e5, "float32", "selu"),
    "rank 3, feature axis 0": Case((3, 20, 160), 0, 1e4, "float32", "sigmoid"),
    "image last": Case((4, 7, 9, 24), 3, 1e5, "float32", "tanh"),
    "image first": Case((40, 3, 7, 9), 1, 1e5, "float32", "relu"),
    "image first, half": Case((3, 2, 16, 33), 1, 1e4, "bfloat16", "leaky_relu"),
    "image first, wide": Case((1, 2, 48, 64), 1, 0.0, "bfloat16", "relu"),
    "1x1 image first": Case((60, 20, 1, 1), 1, 1e4, "float16", None),
    "channels-last memory": Case((4, 24, 7, 9), 1, 1e4, order=(0, 2, 3, 1)),
    "channels-first memory": Case(
        (4, 7, 9, 3), 3, 0.0, "bfloat16", "elu", order=(0, 3, 1, 2)
    ),
    "reversed memory": Case((4, 7, 9, 3), 3, 1e5, "float32", "sigmoid", (3, 2, 1, 0)),
    "rank 5 last": Case((2, 3, 5, 4, 33), 4, 0.0, "float32", "selu"),
    "rank 5 first": Case((2, 3, 6, 5, 14), 1, 1e4, "float32", "relu6"),
    "no sample": Case((0, 4, 3), 2, 0.0, "float32", "relu"),
}
# Small tiles and few programs: parts of several tiles, tiles abreast, all of it ragged.
SMALL = {"_TILE": 512, "_PROGRAMS": 4, "_WIDE": 0}
TILINGS = [(name, SMALL) for name in CASES] + [
    (name, {}) for name in ("image last", "image first", "rank 2, half")
]


class Inputs:
    """Random inputs of a case, and what the oracle makes of them."""

    def __init__(self, case, std=2.0):
        rng = np.random.default_rng(0)
        self.case = case
        self.x = case.tensor(rng.normal(case.mean, std, case.shape))
        self.dy = case.tensor(rng.normal(size=case.shape))
        channels = case.shape[case.axis]
        self.scale, self.offset = (
            torch.tensor(values, dtype=torch.float32, device=DEVICE)
            for values in (rng.normal(1, 0.5, channels), rng.normal(0, 0.5, channels))
        )

    @property
    def parts(self):
        """What computes the case."""
        ndim, axis = len(self.case.shape), self.case.axis % len(self.case.shape)
        axes = Axes((axis,), tuple(one for one in range(ndim) if one != axis))
        return torch_cuda.CudaParts(axes, EPSILON, self.case.activation)

    def run(self, replicas=None):
        """y, the moments, and the gradients."""
        centred, values = self.parts.moments(self.x)
        if replicas is not None:
            centred = self.parts.merged(centred, replicas)
        vectors = self.scale, self.offset
        y = self.parts.normalize(self.x, values, *vectors, centred)
        slopes = self.parts.gradients(
            self.x, *vectors, self.dy, centred, replicas, True
        )
        return y, centred, slopes

    def expected(self):
        case = self.case
        x, dy, scale, offset = map(float64, (self.x, self.dy, self.scale, self.offset))
        gamma, beta = (oracle.spread(one, x, case.axis) for one in (scale, offset))
        activation, slope = ACTIVATIONS[case.activation]
        found = oracle.forward(x, gamma, beta, case.axis, EPSILON)
        dy = dy * slope(found.y)
        slopes = oracle.backward(x, dy, gamma, case.axis, EPSILON)
        return found._replace(y=activation(found.y)), slopes


def float64(tensor):
    return tensor.detach().double().cpu().numpy()


def assert_close(tensor, expected, limit):
    expected = np.reshape(expected, tensor.shape)
    size = np.max(np.abs(expected), initial=1e-2)
    assert np.max(np.abs(float64(tensor) - expected), initial=0.0) <= limit * size
