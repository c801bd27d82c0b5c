"""The few things that tests cannot say in Keras's words: gradients, compiled calls.

One class a framework, the same names in each, as in the package's kernels.
"""

import contextlib

import keras
import numpy as np


class _TensorFlow:
    def __init__(self):
        import tensorflow as tf

        self.tf = tf

    def gradients(self, function, tensors, upstream):
        with self.tf.GradientTape() as tape:
            tape.watch(tensors)
            y, extra = function(*tensors)
        return y, extra, tape.gradient(y, tensors, output_gradients=upstream)

    def compiled(self, function, unknown=None):
        signature = unknown and [
            self.tf.TensorSpec(shape, "float32") for shape in unknown
        ]
        return self.tf.function(function, input_signature=signature)

    def xla(self, function):
        return self.tf.function(function, jit_compile=True)

    def float64(self):
        return contextlib.nullcontext()


class _Jax:
    def __init__(self):
        import jax

        self.jax = jax

    def gradients(self, function, tensors, upstream):
        # Compiled whole: op by op, every new shape would compile some thirty kernels.
        @self.jax.jit
        def value_and_gradients(tensors, upstream):
            y, pull_back, extra = self.jax.vjp(function, *tensors, has_aux=True)
            return y, extra, pull_back(upstream)

        return value_and_gradients(tensors, upstream)

    def compiled(self, function, unknown=None):
        return self.jax.jit(function)

    xla = compiled

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

    def gradients(self, function, tensors, upstream):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        y, extra = function(*leaves)
        return y.detach(), extra, self.torch.autograd.grad(y, leaves, upstream)

    def compiled(self, function, unknown=None):
        return self.torch.compile(function, backend="aot_eager", dynamic=bool(unknown))

    xla = compiled

    def float64(self):
        return contextlib.nullcontext()


_FRAMEWORK = {"tensorflow": _TensorFlow, "jax": _Jax, "torch": _Torch}[
    keras.backend.backend()
]()

compiled = _FRAMEWORK.compiled
xla = _FRAMEWORK.xla
float64 = _FRAMEWORK.float64


def gradients(function, tensors, upstream):
    """`y, extra = function(*tensors)`, and the gradients of `sum(y * upstream)`."""
    y, extra, slopes = _FRAMEWORK.gradients(function, list(tensors), upstream)
    return numpy(y), extra, [numpy(slope) for slope in slopes]


def tensor(array, dtype=None):
    """A tensor of the backend, of the array's dtype unless another is named."""
    return keras.ops.convert_to_tensor(array, dtype=dtype or str(np.asarray(array).dtype))


def numpy(value):
    """As NumPy, bfloat16 and float16 as float32."""
    if keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16"):
        value = keras.ops.cast(value, "float32")
    return keras.ops.convert_to_numpy(value)
