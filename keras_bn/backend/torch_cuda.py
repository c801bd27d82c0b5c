"""A training pass on CUDA, part by part, on Triton kernels: eight passes over memory.

The parts are operators without a gradient, for an autograd function to call. They are
tried, and `torch_cuda_operators` imported, when an input on CUDA first asks for them.
"""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from keras_bn.backend.formulas import CentredMoments
from keras_bn.backend.interface import Axes, Moments, Replicas, Tensor

_DEVICE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Older devices have no bfloat16, and Triton drops them one by one.
_CAPABILITY = (8, 0)


def why_not(x: Tensor, axes: Axes, mask: Tensor | None) -> str | None:
    """Why `CudaParts` cannot serve a training call, in words; None where they can.

    Warns, once, where there is a CUDA device that they cannot be used on.
    """
    if not _on_cuda(x):
        return f"inputs on {x.device.type}, not on cuda"
    if mask is not None:
        return "a mask"
    if len(axes.features) > 1:
        return "several feature axes"
    if x.dtype not in _DTYPES:
        return f"inputs of {x.dtype}"
    return _unable(x.device.index)


def unavailable() -> str | None:
    """Why no device at hand is served, in words; None where one is."""
    return _unable(None)


def serves_statistics(*vectors: Tensor) -> bool:
    """Whether `usable` and `moving_average` serve these: one launch each."""
    if not _on_cuda(vectors[0]):
        return False
    return all(
        _on_cuda(one) and one.dtype == torch.float32 and one.numel() > 0
        for one in vectors
    ) and not _unable(vectors[0].device.index)


def _on_cuda(x: Tensor) -> bool:
    return bool(x.device.type == _DEVICE)


# Asks the device, which torch.compile is not to trace.
@torch.compiler.assume_constant_result
def _unable(device: int | None) -> str | None:
    return _reason(device)


@functools.cache
def _reason(device: int | None) -> str | None:
    """Why the kernels do not run on a device."""
    capability = _capability(device)
    if capability is None:
        return "no CUDA device at hand"  # abstract tensors may be on one nevertheless
    if capability < _CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (capability, _CAPABILITY))
        reason: str | None = f"it has compute capability {have}, not {need} or higher"
    else:
        # In a thread of its own, where nobody traces with abstract tensors.
        with ThreadPoolExecutor(1) as thread:
            reason = thread.submit(_failure, device).result()
    if reason is not None:
        _warn_once(reason)
    return reason


def _capability(device: int | None) -> tuple[int, int] | None:
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def _failure(device: int | None) -> str | None:
    """How the smallest of the kernels fails to compile or to run."""
    try:
        from keras_bn.backend import torch_cuda_operators

        number = torch.ones(1, device=torch.device(_DEVICE, device))
        torch_cuda_operators.usable(number, number, number)
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    # Triton needs a C compiler, NVIDIA's assembler, a folder to write to, and more: any
    # of them fails in its own way.
    except Exception as error:
        return f"Triton fails on it ({type(error).__name__}: {error})"
    return None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        "On this CUDA device the Triton kernels of BatchNormalization do not serve, "
        f"and it trains by plain formulas, which take several times as long: {reason}.",
        UserWarning,
        stacklevel=2,
    )


class CudaParts(NamedTuple):
    """`TrainingParts` of inputs with one feature axis and no mask."""

    axes: Axes
    epsilon: float
    activation: str | None

    def moments(self, x: Tensor) -> tuple[CentredMoments, None]:
        """See `TrainingParts.moments`. Two launches."""
        return _parts(
            torch.ops.keras_bn.moments.default(x, self.axes.features[0])
        ), None

    def merged(self, found: CentredMoments, replicas: Replicas) -> CentredMoments:
        """See `formulas.over_replicas`, which gathers the same numbers.

        So some replicas may run here, and others, on other devices, on formulas.
        """
        row = torch.cat([part.reshape(-1) for part in found])
        return _parts(torch.ops.keras_bn.merged.default(replicas.gather(row)))

    def normalize(
        self,
        x: Tensor,
        values: None,
        scale: Tensor,
        offset: Tensor,
        found: CentredMoments,
    ) -> Tensor:
        """See `TrainingParts.normalize`. One launch."""
        _, *moments = found
        return torch.ops.keras_bn.normalize.default(
            x, scale, offset, *moments, *self._constants()
        )

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: CentredMoments,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """See `TrainingParts.gradients`. Three launches; two without dx."""
        count, *moments = found
        if need_dx and not torch.compiler.is_compiling() and dy.stride() != x.stride():
            # Once, rather than by each of the two operators.
            dy = torch.empty_like(x).copy_(dy)
        rest = (scale, offset, *moments, *self._constants())
        sums = torch.ops.keras_bn.slopes.default(x, dy, *rest)
        dscale, doffset = sums.unbind()
        if replicas is not None:
            # Also where nobody wants dx: replicas on formulas wait for this one.
            sums = replicas.total(sums)
        if not need_dx:
            return None, dscale, doffset
        dx = torch.ops.keras_bn.input_gradient.default(x, dy, sums, count, *rest)
        return dx, dscale, doffset

    def _constants(self) -> tuple[int, float, str | None]:
        return self.axes.features[0], self.epsilon, self.activation


def _parts(row: Tensor) -> CentredMoments:
    channels = row.shape[0] // 3
    count, *moments = row.split((1, channels, channels, channels))
    return CentredMoments(count.reshape(()), *moments)


def usable(moments: Moments) -> Tensor:
    """See `Kernels.usable`. One launch."""
    return torch.ops.keras_bn.usable.default(
        moments.mean, moments.variance, moments.count
    )


def moving_average(
    average: Tensor, value: Tensor, momentum: float, where: Tensor | bool = True
) -> Tensor:
    """See `keras_bn.ops.moving_average`. One launch."""
    guard = None if where is True else where
    return torch.ops.keras_bn.moving_average.default(average, value, momentum, guard)
