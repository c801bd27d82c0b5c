"""Training passes that leave the moving statistics as they are."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Not a ContextVar, at which torch.compile would break its graph.
_here = threading.local()


@contextmanager
def no_update() -> Iterator[None]:
    """Within, layers train without updating their moving statistics.

    They normalize by the statistics of the batch, and gradients flow as always. For a
    training step that calls a layer more than once, where one of the calls should not
    count: the second pass over a discriminator, a probe, a perturbed batch.

    What is compiled keeps what it was traced with: enter it inside the compiled
    function (a `train_step`, say), not around its call.

    Example:

    >>> import keras_bn, numpy as np
    >>> layer = keras_bn.BatchNormalization(momentum=0.5)
    >>> with keras_bn.no_update():
    ...     y = layer(np.array([[2.0], [4.0]], "float32"), training=True)
    >>> float(layer.moving_mean[0])
    0.0
    """
    outside = updates_stopped()
    _here.stopped = True
    try:
        yield
    finally:
        _here.stopped = outside


def updates_stopped() -> bool:
    """Whether a `no_update()` is around this call."""
    return bool(getattr(_here, "stopped", False))
