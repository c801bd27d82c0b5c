"""The moving statistics of a layer: the weights they are kept in, and how they move."""

from collections.abc import Iterator
from typing import Any

from keras import initializers, ops

from keras_bn.layers import schedules
from keras_bn.layers.no_update import updates_stopped
from keras_bn.ops import (
    Moments,
    merge_moments,
    moving_average,
    renorm_correction,
    statistics_dtype,
)
from keras_bn.ops.batch_norm import as_tensor
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
        whole = name == STEP
        # Replicas that have the same statistics write the same; others' are averaged,
        # where the engine (tf.distribute) can. They count the same steps.
        shared = "only_first_replica" if whole else "mean"
        weight = layer.add_weight(
            shape=shape,
            name=name,
            initializer=initializer,
            # float32 at least: bfloat16 has no number between 8 and 8.03, so an
            # average there stands still; float16 ends at 65504.
            dtype="int32" if whole else statistics_dtype(layer.variable_dtype),
            trainable=False,
            autocast=False,
            aggregation="none" if same else shared,
        )
        setattr(layer, name, weight)

    def value(self, name: str) -> Any:
        """The tensor that the statistic `name` is now."""
        weight = getattr(self._layer, name, None)
        if weight is None:
            raise ValueError(
                f"Layer '{self._layer.name}' was built without the weight `{name}`, "
                "which its settings need now. Give them to the constructor, or make "
                "another layer by `keras_bn.convert(model, ...)`. Received: "
                f"momentum={self._layer.momentum!r}"
            )
        return weight.value

    def assign(self, name: str, value: Any) -> None:
        """Makes `value` the statistic `name`."""
        getattr(self._layer, name).assign(value)

    def create(self, shape: Shape) -> None:
        """Creates all weights, one value per channel, in the order that Keras has."""
        for name, size, initializer in self._initial(shape):
            self.add(name, size, initializer)

    def reset(self) -> None:
        """Gives all weights the values that their initializers give."""
        for name, shape, initializer in self._initial(self._layer._parameter_shape):
            weight = getattr(self._layer, name)
            new = initializers.get(initializer)(shape, dtype=weight.dtype)
            self._check_gets_out(new, weight.value)
            self.assign(name, new)

    def _check_gets_out(self, new: Any, state: Any) -> None:
        try:
            recomputing(new, state)
        except ValueError:
            # What it says is of calls in training.
            raise ValueError(
                f"The moving statistics of layer '{self._layer.name}' cannot be reset "
                "within a function that is traced or transformed, which the new values "
                "could not get out of. Call `reset_statistics()` outside of it."
            ) from None

    def _initial(self, shape: Shape) -> Iterator[tuple[str, Shape, Any]]:
        """The name, shape and initializer of each weight."""
        layer = self._layer
        yield "moving_mean", shape, layer.moving_mean_initializer
        yield "moving_variance", shape, layer.moving_variance_initializer
        if layer.renorm:
            yield "moving_stddev", shape, self._initial_stddev
            yield "renorm_mean", shape, _copy(layer.moving_mean_initializer)
            yield "renorm_stddev", shape, self._initial_stddev
        if layer.accumulation_steps > 1:
            for name in _ACCUMULATED:
                yield name, shape, "zeros"
            yield "accumulated_steps", (), "zeros"
        if layer.momentum is None:
            yield COUNT, shape, "zeros"
        if layer.zero_debias:
            yield WEIGHT, shape, "zeros"
            if layer.renorm:
                yield RENORM_WEIGHT, shape, "zeros"
        if self._scheduled():
            yield STEP, (), "zeros"

    def _initial_stddev(self, shape: Shape, dtype: str | None = None) -> Any:
        variance = _copy(self._layer.moving_variance_initializer)
        return ops.sqrt(variance(shape, dtype=dtype))

    def _scheduled(self) -> bool:
        """Whether a setting follows the step."""
        layer = self._layer
        if callable(layer.momentum):
            return True
        if not layer.renorm:
            return False
        return any(
            map(callable, (layer.renorm_momentum, *layer.renorm_clipping.values()))
        )

    def _now(self, setting: Any) -> Any:
        """What `setting` is at this step."""
        if not callable(setting):
            return setting
        value = schedules.at(setting, self.value(STEP))
        return as_tensor(value, statistics_dtype(self._layer.variable_dtype))

    def renorm_correction(self, mean: Any, variance: Any) -> tuple[Any, Any]:
        """Batch renormalization's `(r, d)` for a batch of these moments."""
        layer = self._layer
        limits = {key: self._now(one) for key, one in layer.renorm_clipping.items()}
        return renorm_correction(
            mean,
            variance,
            ops.cast(self.value("renorm_mean"), mean.dtype),
            ops.cast(self.value("renorm_stddev"), mean.dtype),
            epsilon=layer.epsilon,
            clipping=limits,
        )

    def update(self, moments: Moments) -> None:
        """Moves the statistics by a training batch of these moments.

        Not within `no_update()`, nor where activation checkpointing repeats a call.
        """
        # The weight itself: what is computed of it belongs to the running trace.
        state = self._layer.moving_mean.value
        if updates_stopped() or recomputing(moments.mean, state):
            return
        layer = self._layer
        if layer.momentum is None or layer.zero_debias:
            # Raises where it is not there, before anything has moved.
            self.value(COUNT if layer.momentum is None else WEIGHT)
        momentum = self._momentum(layer.momentum)
        where: Any = usable(moments)
        complete: Any = True
        if layer.accumulation_steps > 1:
            moments, complete = self._accumulate(moments, where)
            where = complete & (moments.count > 0)
        if layer.renorm:
            self._move_renorm(moments, where)
        if momentum is None:
            self._merge(moments, where)
        else:
            self._average(moments, self._kept(momentum, WEIGHT, where), where)
        if self._scheduled():
            step = self.value(STEP)
            self.assign(STEP, step + ops.cast(complete, step.dtype))

    def _accumulate(self, moments: Moments, where: Any) -> tuple[Moments, Any]:
        """The moments of the batches since the last update; whether to update now."""
        so_far = Moments(*map(self.value, _ACCUMULATED))
        merged = merge_moments(so_far, _guarded(moments, where, so_far))
        steps = self.value("accumulated_steps") + 1
        complete = steps >= self._layer.accumulation_steps
        for name, value in zip(
            ("accumulated_steps", *_ACCUMULATED), (steps, *merged), strict=True
        ):
            self.assign(name, ops.where(complete, ops.zeros_like(value), value))
        return merged, complete

    def _move_renorm(self, moments: Moments, where: Any) -> None:
        """The averages that the correction of the next batches goes by."""
        stddev = ops.sqrt(moments.variance + self._layer.epsilon)
        momentum = self._momentum(self._layer.renorm_momentum)
        kept = self._kept(momentum, RENORM_WEIGHT, where)
        self._move("renorm_mean", moments.mean, kept, where)
        self._move("renorm_stddev", stddev, kept, where)

    def _merge(self, moments: Moments, where: Any) -> None:
        """The moments of all batches so far."""
        # A float32 count stands still when a batch is less than 2**-24 of it; so small
        # a batch moves the average no more either.
        so_far = Moments(*map(self.value, _MERGED))
        merged = merge_moments(so_far, _guarded(moments, where, so_far))
        for name, old, new in zip(_MERGED, so_far, merged, strict=True):
            self.assign(name, ops.where(merged.count > 0, new, old))
        if self._layer.renorm:
            stddev = ops.sqrt(self.value("moving_variance") + self._layer.epsilon)
            self._move("moving_stddev", stddev, 0.0, where)

    def _average(self, moments: Moments, kept: Any, where: Any) -> None:
        """The moving averages, of which the share `kept` stays."""
        self._move("moving_mean", moments.mean, kept, where)
        if not self._layer.renorm:
            self._move("moving_variance", moments.variance, kept, where)
            return
        epsilon = self._layer.epsilon
        # As in the paper it is the deviation that is averaged; inference wants its
        # square, without the epsilon that it adds again.
        stddev = ops.sqrt(moments.variance + epsilon)
        moving_stddev = self._move("moving_stddev", stddev, kept, where)
        variance = ops.relu(ops.square(moving_stddev) - epsilon)
        self._move("moving_variance", variance, 0.0, where)

    def _momentum(self, setting: Any) -> Any:
        now = self._now(setting)
        # A schedule's roundings may lead out of the range.
        return ops.clip(now, 0.0, 1.0) if callable(setting) else now

    def _kept(self, momentum: Any, weight: str, where: Any) -> Any:
        """The share of an average to keep, so that it is one of the batches alone.

        With W = 1 - momentum^t, the sum of the batches' weights in an average from 0
        on (1 less the product of all momenta, where they differ), that average divided
        by W moves by

            average = average * kept + batch * (1 - kept)
            kept = momentum * W_before / W
        """
        if not self._layer.zero_debias:
            return momentum
        before = self.value(weight)
        one = ops.ones_like(before)
        after = moving_average(before, one, momentum, where)
        some = after > 0  # not with momentum 1, which takes in nothing
        kept = ops.where(some, momentum * before / ops.where(some, after, one), one)
        self.assign(weight, after)  # which may write into `before`
        return kept

    def _move(self, name: str, value: Any, momentum: Any, where: Any) -> Any:
        average = moving_average(self.value(name), value, momentum, where)
        self.assign(name, average)
        return average


COUNT, WEIGHT, RENORM_WEIGHT = "moving_count", "moving_weight", "renorm_weight"
STEP = "moving_step"
_ACCUMULATED = tuple(f"accumulated_{part}" for part in Moments._fields)
_MERGED = tuple(f"moving_{part}" for part in Moments._fields)


def _guarded(moments: Moments, where: Any, like: Moments) -> Moments:
    """`moments`, with a count of 0 where not `where`."""
    return Moments(
        *(
            ops.cast(ops.where(where, part, ops.zeros_like(part)), kept.dtype)
            for part, kept in zip(moments, like, strict=True)
        )
    )


def _copy(initializer: Any) -> Any:
    """A copy, so that two weights do not share one random seed."""
    if isinstance(initializer, initializers.Initializer):
        return initializer.__class__.from_config(initializer.get_config())
    return initializer
