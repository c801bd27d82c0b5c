"""The parts of a training pass on PyTorch: what they must do, and the formulas as such.

Other parts are in `torch_cpu` and `torch_cuda`.
"""

from typing import Any, NamedTuple, Protocol

from keras_bn.backend import derivatives, formulas
from keras_bn.backend.activations import activate
from keras_bn.backend.interface import Axes, Replicas, Tensor


class TrainingParts(Protocol):
    """The parts of a training pass, for one input."""

    def moments(self, x: Tensor) -> tuple[Any, Tensor | None]:
        """The moments of this process's x, and x as `normalize` wants it, if changed.

        The moments are a named tuple of tensors (or None), with `bookkeeping()`.
        """

    def merged(self, found: Any, replicas: Replicas) -> Any:
        """The moments of all replicas together."""

    def normalize(
        self,
        x: Tensor,
        values: Tensor | None,
        scale: Tensor,
        offset: Tensor,
        found: Any,
    ) -> Tensor:
        """The output, as x in shape, dtype and memory order: no view of anything."""

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: Any,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, ...]:
        """The gradients for x (None unless it is needed), scale and offset."""


class FormulaParts(NamedTuple):
    """The formulas as they stand: on any device, with any mask and axes."""

    axes: Axes
    epsilon: float
    activation: str | None
    mask: Tensor | None = None
    fused: bool = False  # whether a compiler makes one pass of a sampled centre
    of_weights: bool = False  # whether `gradients` gives, as the fourth, the mask's

    def moments(self, x: Tensor) -> tuple[formulas.CentredMoments, None]:
        """See `TrainingParts.moments`."""
        sampled = self.fused and self.mask is None
        about = formulas.sample(x, self.axes) if sampled else None
        values = formulas.widen(x)
        found = formulas.centred_moments(values, self.axes, self.mask, about=about)
        return found, None

    def merged(
        self, found: formulas.CentredMoments, replicas: Replicas
    ) -> formulas.CentredMoments:
        """See `TrainingParts.merged`."""
        return formulas.over_replicas(found, replicas)

    def normalize(
        self,
        x: Tensor,
        values: None,
        scale: Tensor,
        offset: Tensor,
        found: formulas.CentredMoments,
    ) -> Tensor:
        """See `TrainingParts.normalize`."""
        y = formulas.normalize(
            formulas.widen(x), scale, offset, found, self.axes, self.epsilon
        )
        return activate(self.activation, y).to(x.dtype)

    def gradients(
        self,
        x: Tensor,
        scale: Tensor,
        offset: Tensor,
        dy: Tensor,
        found: formulas.CentredMoments,
        replicas: Replicas | None,
        need_dx: bool,
    ) -> tuple[Tensor | None, ...]:
        """See `TrainingParts.gradients`."""
        return derivatives.gradients(
            *(x, scale, offset, self.mask, found, dy, self.axes, self.epsilon),
            *(self.activation, replicas),
            of_weights=self.of_weights,
        )
