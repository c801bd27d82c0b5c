"""Quantization-aware training in float64 NumPy, from the papers.

Jacob et al. (2018), figure C.8, and Krishnamoorthi (2018), section 3.2.2: the weights
times `gamma / sqrt(moving_variance + epsilon)` are rounded, the product is divided by
it again, and batch norm follows. Gradients take the rounding for the identity; they are
derived by hand. A convolution is a product of patches and a matrix.
"""

from typing import NamedTuple

import numpy as np

import oracle


class Weights(NamedTuple):
    """A matrix (inputs, outputs), its bias, and those of the batch norm."""

    kernel: np.ndarray
    bias: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float = 1e-3


def rounded_weights(kernel, per_channel):
    """255 levels around 0, for each column or for the whole."""
    largest = np.abs(kernel).max(axis=0 if per_channel else None, keepdims=True)
    step = largest / 127
    return step * np.rint(kernel / step)


def rounded_activations(x, minimum, maximum):
    """256 levels from the minimum to the maximum, 0 being one of them."""
    step = (maximum - minimum) / 255
    zero = np.rint(-minimum / step)
    return step * (np.clip(np.rint(x / step) + zero, 0, 255) - zero)


def train(x, dy, w, per_channel=True, before=False, frozen=False):
    """The output, and gradients of `sum(y * dy)` for x, kernel, bias, gamma, beta.

    Args:
        x: Rows of inputs.
        dy: Rows of output gradients.
        w: The weights.
        per_channel: Whether each column of the kernel has a step of its own.
        before: Whether the batch norm comes before the product.
        frozen: Whether it normalizes by the moving averages.
    """
    deviation = np.sqrt(w.variance + w.epsilon)
    scale = (w.gamma / deviation)[:, None] if before else w.gamma / deviation
    rounded = rounded_weights(w.kernel * scale, per_channel)
    kernel = rounded / scale
    if before:
        z, normalize_back = _normalize(x, w, frozen)
        y = z @ kernel + w.bias
        dz, dkernel = dy @ kernel.T, z.T @ dy
        dx, dgamma, dbeta = normalize_back(dz)
        dbias = dy.sum(0)
    else:
        u = x @ kernel + w.bias
        y, normalize_back = _normalize(u, w, frozen)
        du, dgamma, dbeta = normalize_back(dy)
        dx, dkernel, dbias = du @ kernel.T, x.T @ du, du.sum(0)
    # kernel = rounded / scale, and d rounded = d(w.kernel * scale)
    dscale = dkernel / scale * w.kernel - dkernel * rounded / scale**2
    dgamma = dgamma + dscale.sum(1 if before else 0) / deviation
    return y, (dx, dkernel, dbias, dgamma, dbeta)


def _normalize(x, w, frozen):
    if not frozen:
        y = oracle.forward(x, w.gamma, w.beta, epsilon=w.epsilon).y

        def back(dy):
            g = oracle.backward(x, dy, w.gamma, epsilon=w.epsilon)
            return g.x, g.gamma[0], g.beta[0]

        return y, back
    deviation = np.sqrt(w.variance + w.epsilon)
    normalized = (x - w.mean) / deviation

    def back(dy):
        return dy * w.gamma / deviation, (dy * normalized).sum(0), dy.sum(0)

    return normalized * w.gamma + w.beta, back


def patches(images, size):
    """Rows of what each position of a square kernel of this size sees."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))
    windows = np.moveaxis(windows, 3, -1)  # channels last, as kernels have them
    return windows.reshape(-1, size * size * images.shape[-1])
