"""The moving statistics of a layer: the weights they are kept in, and how they move."""

from typing import Any

from keras import initializers, ops

from keras_bn.layers.no_update import updates_stopped
from keras_bn.ops import (
    Moments,
    merge_moments,
    moving_average,
    renorm_correction,
    statistics_dtype,
)
from keras_bn.ops.moving_average import recomputing, usable

Shape = tuple[int | None, ...]


class MovingStatistics:
    """The moving statistics of `layer`, by what its arguments say.

    A view, made anew for each call: all state is in the layer's weights, which Keras
    saves, copies and distributes, and all settings are attributes of the layer.

    Who keeps other weights (a set for each of several domains, say) overrides `add`,
    `value` and `assign`, through which all the others go.

    Args:
        layer: A layer with the arguments of `BatchNormalization` as attributes. Each
            statistic becomes an attribute of it, under the name of its weight.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def add(self, name: str, shape: Shape, initializer: Any) -> None:
        """Creates the weight `name`."""
        layer = self._layer
        same = layer.synchronized and layer.replica_groups is None
        # float32 at least: bfloat16 has no number between 8 and 8.03, so an average
        # there stands still; float16 ends at 65504.
        weight = layer.add_weight(
            shape=shape,
            name=name,
            initializer=initializer,
            dtype=statistics_dtype(layer.variable_dtype),
            trainable=False,
            autocast=False,
            # Replicas that have the same statistics write the same; others' are
            # averaged, where the engine (tf.distribute) can.
            aggregation="none" if same else "mean",
        )
        setattr(layer, name, weight)

    def value(self, name: str) -> Any:
        """The tensor that the statistic `name` is now."""
        return getattr(self._layer, name).value

    def assign(self, name: str, value: Any) -> None:
        """Makes `value` the statistic `name`."""
        getattr(self._layer, name).assign(value)

    def create(self, shape: Shape) -> None:
        """Creates all weights, one value per channel, in the order that Keras has."""
        layer = self._layer
        self.add("moving_mean", shape, layer.moving_mean_initializer)
        self.add("moving_variance", shape, layer.moving_variance_initializer)
        if layer.renorm:
            mean = _copy(layer.moving_mean_initializer)
            self.add("moving_stddev", shape, self._initial_stddev)
            self.add("renorm_mean", shape, mean)
            self.add("renorm_stddev", shape, self._initial_stddev)
        if layer.accumulation_steps > 1:
            for name in _ACCUMULATED:
                self.add(name, shape, "zeros")
            self.add("accumulated_steps", (), "zeros")

    def _initial_stddev(self, shape: Shape, dtype: str | None = None) -> Any:
        variance = _copy(self._layer.moving_variance_initializer)
        return ops.sqrt(variance(shape, dtype=dtype))

    def renorm_correction(self, mean: Any, variance: Any) -> tuple[Any, Any]:
        """Batch renormalization's `(r, d)` for a batch of these moments."""
        layer = self._layer
        return renorm_correction(
            mean,
            variance,
            ops.cast(self.value("renorm_mean"), mean.dtype),
            ops.cast(self.value("renorm_stddev"), mean.dtype),
            epsilon=layer.epsilon,
            clipping=layer.renorm_clipping,
        )

    def update(self, moments: Moments) -> None:
        """Moves the statistics by a training batch of these moments.

        Not within `no_update()`, nor where activation checkpointing repeats a call.
        """
        # The weight itself: what is computed of it belongs to the running trace.
        state = self._layer.moving_mean.value
        if updates_stopped() or recomputing(moments.mean, state):
            return
        where = usable(moments)
        if self._layer.accumulation_steps > 1:
            moments, where = self._accumulate(moments, where)
        if self._layer.renorm:
            self._move_renorm(moments, where)
        else:
            momentum = self._layer.momentum
            self._move("moving_mean", moments.mean, momentum, where)
            self._move("moving_variance", moments.variance, momentum, where)

    def _accumulate(self, moments: Moments, where: Any) -> tuple[Moments, Any]:
        """The moments of the batches since the last update, and where to update now."""
        so_far = Moments(*map(self.value, _ACCUMULATED))
        batch = (
            ops.cast(ops.where(where, part, ops.zeros_like(part)), kept.dtype)
            for part, kept in zip(moments, so_far, strict=True)
        )
        merged = merge_moments(so_far, Moments(*batch))
        steps = self.value("accumulated_steps") + 1
        complete = steps >= self._layer.accumulation_steps
        for name, value in zip(
            ("accumulated_steps", *_ACCUMULATED), (steps, *merged), strict=True
        ):
            self.assign(name, ops.where(complete, ops.zeros_like(value), value))
        return merged, complete & (merged.count > 0)

    def _move_renorm(self, moments: Moments, where: Any) -> None:
        layer = self._layer
        stddev = ops.sqrt(moments.variance + layer.epsilon)
        self._move("renorm_mean", moments.mean, layer.renorm_momentum, where)
        self._move("renorm_stddev", stddev, layer.renorm_momentum, where)
        self._move("moving_mean", moments.mean, layer.momentum, where)
        # As in the paper it is the deviation that is averaged; inference wants its
        # square, without the epsilon that it adds again.
        moving_stddev = self._move("moving_stddev", stddev, layer.momentum, where)
        variance = ops.relu(ops.square(moving_stddev) - layer.epsilon)
        self._move("moving_variance", variance, 0.0, where)

    def _move(self, name: str, value: Any, momentum: float, where: Any) -> Any:
        average = moving_average(self.value(name), value, momentum, where)
        self.assign(name, average)
        return average


_ACCUMULATED = tuple(f"accumulated_{part}" for part in Moments._fields)


def _copy(initializer: Any) -> Any:
    """A copy, so that two weights do not share one random seed."""
    if isinstance(initializer, initializers.Initializer):
        return initializer.__class__.from_config(initializer.get_config())
    return initializer
