"""The one place that knows which framework Keras runs on.

`kernels()` gives the arithmetic for it, `describe()` says which kernel serves what.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import cast

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in ("jax", "tensorflow", "torch"):
        raise
    raise ModuleNotFoundError(
        f"Keras is to run on '{error.name}', which is not installed. Set the "
        "environment variable KERAS_BACKEND to one that is: tensorflow, jax or torch",
        name=error.name,
    ) from None
import numpy as np

from keras_bn.backend.groups import Groups
from keras_bn.backend.interface import Kernels, Processes, Replicas, Service, Tensor

__all__ = ["Service", "describe"]  # the rest is for the parts of this package


_KERNEL_FILES = {
    "jax": "jax_kernels",
    "tensorflow": "tensorflow_kernels",
    "torch": "torch_kernels",
}
"""The kernel file of each framework; any other backend runs on the reference."""


# Keras fixes its backend at import; so do we. No other framework is imported.
_kernels = cast(
    Kernels,
    importlib.import_module(
        f"keras_bn.backend.{_KERNEL_FILES.get(keras.backend.backend(), 'reference')}"
    ),
)


def _of_framework(subject: str) -> ModuleType | None:
    name = keras.backend.backend()
    if name not in _KERNEL_FILES:
        return None
    return importlib.import_module(f"keras_bn.backend.{name}_{subject}")


_context = _of_framework("context")
_replicas = _of_framework("replicas")
_processes = _of_framework("processes")
_require_own_weights = getattr(_replicas, "require_own_weights", None)


def timing() -> ModuleType:
    """The steps that the benchmark times on this backend: see `jax_timing`."""
    name = keras.backend.backend()
    if name not in _KERNEL_FILES:
        raise ValueError(
            "The benchmark needs a backend that trains, one of "
            f"{sorted(_KERNEL_FILES)}. Received: KERAS_BACKEND={name}"
        )
    return importlib.import_module(f"keras_bn.backend.{name}_timing")


def kernels() -> Kernels:
    """The kernels for the backend that Keras runs on."""
    return _kernels


def replicas(
    groups: Groups = None,
    batch: Sequence[Tensor] = (),
    parameters: Sequence[Tensor] = (),
) -> Replicas | None:
    """The replicas that share statistics with the running call; None if it is alone.

    They are those of the engine that is started, or of this one's group among them. See
    the module of the backend, such as `torch_replicas`.

    Args:
        groups: See `keras_bn.backend.groups`.
        batch: The tensors that each replica has its own part of.
        parameters: Those that have a value a channel.

    Raises:
        ValueError: The engine that is started cannot serve synchronized statistics, or
            knows no such groups; or the backend is one whose engines are not known.
    """
    if _replicas is None:
        raise _of_one_replica("synchronized")
    return _replicas.replicas(groups, batch, parameters)


def _of_one_replica(argument: str) -> ValueError:
    """The error where statistics would be of this replica alone, and nobody knew."""
    where = (
        f"on the backend '{keras.backend.backend()}', whose replicas and processes are "
        f"not known here, as those of {', '.join(sorted(_KERNEL_FILES))} are"
    )
    if argument == "replicas":
        return ValueError(
            f"Argument `replicas` must be given {where}. Received: replicas=None"
        )
    return ValueError(
        f"Argument `synchronized` must be False {where}. For inference it may be True, "
        "and `keras_bn.convert(model, synchronized=False)` gives a model that trains "
        "alone. Received: synchronized=True"
    )


def processes(
    groups: Groups = None, argument: str = "synchronized"
) -> Processes | None:
    """The processes that share out data between them; None where this one is alone.

    Those of `torch.distributed`, of JAX's cluster, or of the strategy in
    whose scope TensorFlow is; or of this one's group among them. Devices of one process
    are none.

    Args:
        groups: See `keras_bn.backend.groups`.
        argument: The one by which they were asked for, for the error.

    Raises:
        ValueError: Groups that are not groups of them; or the backend is one whose
            processes are not known.
    """
    if _processes is None:
        raise _of_one_replica(argument)
    return _processes.processes(groups)


def copies(value: Tensor) -> list[np.ndarray]:
    """The values that this process's replicas have of a variable: mostly one.

    Several under `tf.distribute`, and on JAX where an array was called the same on all
    devices without a check.
    """
    if _processes is None:
        return [np.array(keras.ops.convert_to_numpy(value))]
    return _processes.copies(value)


def group_ranks(value: object) -> list[int] | None:
    """The replicas in a process group of the backend's; None where `value` is none.

    Raises:
        ValueError: This process is not in it.
    """
    known = getattr(_replicas, "group_ranks", None)
    return known(value) if known else None


def recomputing(update: Tensor, state: Tensor) -> bool:
    """Whether this forward pass repeats an earlier one, for activation checkpointing.

    State must not move a second time then.

    Args:
        update: A result of the running call that a variable is to take in.
        state: The value of that variable.

    Raises:
        ValueError: The backend cannot bring an update out of such a pass (JAX).
    """
    return _context is not None and bool(_context.recomputing(update, state))


def require_own_weights(layer: keras.Layer) -> None:
    """Raises where the framework has put other weights in the place of Keras's.

    Raises:
        ValueError: What Keras would train are not the weights that are trained.
    """
    if _require_own_weights:
        _require_own_weights(layer)


def readable(x: Tensor) -> bool:
    """Whether a look at the values of `x` costs nothing and asks nothing of a tracer.

    Not where the call is traced or transformed, and not where the values lie on an
    accelerator, which would have to be waited for. On a backend that is not known here,
    arrays of NumPy only: of others it cannot be told.
    """
    return isinstance(x, np.ndarray) if _context is None else bool(_context.readable(x))


def same_device(x: Tensor, weight: keras.Variable) -> bool:
    """Whether `x` lies where `weight` does, or the framework moves it by itself."""
    return _context is None or bool(_context.same_device(x, weight))


def ensure_shape(x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """`x`, known to have this shape, of which the backend may have known less."""
    return kernels().ensure_shape(x, shape)


def describe() -> list[Service]:
    """Which kernel serves which case on the running backend, and how.

    Example:

    >>> import keras_bn
    >>> {service.case.split(",")[0] for service in keras_bn.backend.describe()} == {
    ...     "training",
    ...     "inference",
    ... }
    True
    """
    return [*kernels().services(), *([] if _replicas else [_NOT_SYNCHRONIZED])]


_NOT_SYNCHRONIZED = Service(
    "training, synchronized", "none", "an error: this backend's replicas are not known"
)


def represents(dtype: str) -> bool:
    """Whether the backend computes in `dtype` as it is set up now.

    False for float64 on JAX unless `jax_enable_x64` is on: JAX would turn it into
    float32 without a word.
    """
    tensor = keras.ops.convert_to_tensor(np.zeros((), dtype))
    return bool(keras.backend.standardize_dtype(tensor.dtype) == dtype)


def require_represented(dtype: str) -> None:
    """Raises where the backend would compute float64 in less than float64.

    Raises:
        ValueError: `dtype` is float64 and the backend is not set up for it.
    """
    if dtype == "float64" and not represents("float64"):
        raise ValueError(
            "dtype float64 is not available: the backend is set up to compute it in "
            "float32. On JAX, set `jax.config.update('jax_enable_x64', True)` before "
            "any computation, or use float32. Received: dtype float64 on backend "
            f"{keras.backend.backend()}"
        )
