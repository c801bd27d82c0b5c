"""The few things that tests cannot say in Keras's words: gradients, compiled calls.

One class a framework, the same names in each, as in the package's kernels.
"""

import contextlib
import functools

import keras
import numpy as np
from packaging.version import Version

KERAS = Version(keras.__version__).release
# With Keras 3.14 each operation of Keras's breaks the graph of torch.compile.
WHOLE_GRAPHS = KERAS >= (3, 15)


class _TensorFlow:
    def __init__(self):
        import tensorflow as tf

        self.tf = tf

    def gradients(self, function, tensors, upstream, quick):
        with self.tf.GradientTape() as tape:
            tape.watch(tensors)
            y, extra = function(*tensors)
        return y, extra, tape.gradient(y, tensors, output_gradients=upstream)

    def second_gradient(self, function, x, upstream, quick):
        with self.tf.GradientTape() as outer:
            outer.watch(x)
            with self.tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            slope = inner.gradient(y, x, output_gradients=upstream)
            total = self.tf.reduce_sum(slope * slope)
        return outer.gradient(total, x)

    saved_bytes = None  # TensorFlow has no public count of what its tape keeps

    def compiled(self, function, unknown=None):
        signature = unknown and [
            self.tf.TensorSpec(shape, "float32") for shape in unknown
        ]
        return self.tf.function(function, input_signature=signature)

    def xla(self, function):
        return self.tf.function(function, jit_compile=True)

    def platform(self, tensor):
        return tensor.device.rpartition("device:")[2].partition(":")[0].lower()

    def at_once(self, function):
        return function

    def float64(self):
        return contextlib.nullcontext()


# The Makefile's UNOPTIMIZED, for one program: compiled in a fourth of the time.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class _Jax:
    def __init__(self):
        import jax

        self.jax = jax

    def gradients(self, function, tensors, upstream, quick):
        # Compiled whole: op by op, every new shape would compile some thirty kernels.
        @functools.partial(self.jax.jit, compiler_options=_QUICK if quick else None)
        def value_and_gradients(tensors, upstream):
            y, pull_back, extra = self.jax.vjp(function, *tensors, has_aux=True)
            return y, extra, pull_back(upstream)

        return value_and_gradients(tensors, upstream)

    def second_gradient(self, function, x, upstream, quick):
        def slope(x):
            return self.jax.vjp(function, x)[1](upstream)[0]

        second = self.jax.grad(lambda x: (slope(x) ** 2).sum())
        return self.jax.jit(second, compiler_options=_QUICK if quick else None)(x)

    def saved_bytes(self, function, tensors):
        _, pull_back = self.jax.jit(lambda *t: self.jax.vjp(function, *t))(*tensors)
        arrays = {id(a): a for a in self.jax.tree.leaves(pull_back)}
        return sum(array.nbytes for array in arrays.values())

    def compiled(self, function, unknown=None):
        return self.jax.jit(function)

    xla = compiled

    def at_once(self, function):
        return self.jax.jit(function, compiler_options=_QUICK)

    def platform(self, tensor):
        (device,) = tensor.devices()
        return device.platform

    @contextlib.contextmanager
    def float64(self):
        self.jax.config.update("jax_enable_x64", True)
        try:
            yield
        finally:
            self.jax.config.update("jax_enable_x64", False)


class _Torch:
    def __init__(self):
        import torch

        self.torch = torch

    def gradients(self, function, tensors, upstream, quick):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        y, extra = function(*leaves)
        return y.detach(), extra, self.torch.autograd.grad(y, leaves, upstream)

    def second_gradient(self, function, x, upstream, quick):
        x = x.detach().requires_grad_()
        (slope,) = self.torch.autograd.grad(function(x), x, upstream, create_graph=True)
        (second,) = self.torch.autograd.grad((slope * slope).sum(), x)
        return second

    def saved_bytes(self, function, tensors):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with self.torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(*leaves)
        return sum(storages.values())

    def compiled(self, function, unknown=None):
        # Closures of one place count as one function, which after eight compilations
        # PyTorch runs as it is, and says so in a log alone.
        self.torch.compiler.reset()
        return self.torch.compile(function, backend="aot_eager", dynamic=bool(unknown))

    xla = compiled

    def at_once(self, function):
        return function

    def platform(self, tensor):
        return tensor.device.type

    def float64(self):
        return contextlib.nullcontext()


_FRAMEWORK = {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}[
    keras.backend.backend()
]()

compiled = _FRAMEWORK.compiled
xla = _FRAMEWORK.xla
# Compiled where single operators would be as well, one by one: on JAX.
at_once = _FRAMEWORK.at_once
float64 = _FRAMEWORK.float64
saved_bytes = _FRAMEWORK.saved_bytes
# The compilers that differ: JAX and PyTorch have one each.
COMPILERS = {"compiled": compiled} | ({} if xla == compiled else {"xla": xla})


def gradients(function, tensors, upstream, quick=False):
    """`y, extra = function(*tensors)`, and the gradients of `sum(y * upstream)`.

    `quick` is for what hangs on no last digit: a compiler is to spend no time on it.
    """
    y, extra, slopes = _FRAMEWORK.gradients(function, list(tensors), upstream, quick)
    return numpy(y), extra, [numpy(slope) for slope in slopes]


def platform():
    """The kind of device that Keras makes its tensors on: "cpu", or a GPU's name."""
    return _FRAMEWORK.platform(keras.ops.convert_to_tensor(0.0))


def second_gradient(function, x, upstream, quick=False):
    """The gradient for x of the squared gradient of `sum(function(x) * upstream)`."""
    return numpy(_FRAMEWORK.second_gradient(function, x, upstream, quick))


def tensor(array, dtype=None):
    """A tensor of the backend, of the array's dtype unless another is named."""
    return keras.ops.convert_to_tensor(
        array, dtype=dtype or str(np.asarray(array).dtype)
    )


def numpy(value):
    """As NumPy, bfloat16 and float16 as float32."""
    if keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16"):
        value = keras.ops.cast(value, "float32")
    return keras.ops.convert_to_numpy(value)
