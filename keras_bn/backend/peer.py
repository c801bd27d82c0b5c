"""What the benchmark's files, `*_timing.py`, and the benchmark speak in."""

from collections.abc import Callable
from typing import NamedTuple

Step = Callable[[], object]
"""Launches a step on the device and returns its result, without waiting for it."""


class Peer(NamedTuple):
    """A framework's own layer, to compare with.

    Attributes:
        name: Whose it is.
        training: Makes a training step; it may raise NotImplementedError, as all that
            makes steps may, where the layer does not run that way.
        inference: Makes an inference step.
        saved: The bytes that its forward pass keeps for the backward pass; None where
            the framework has no count of them.
    """

    name: str
    training: Callable[[], Step]
    inference: Callable[[], Step]
    saved: Callable[[], int | None] = lambda: None
