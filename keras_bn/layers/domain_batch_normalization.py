"""Batch normalization with statistics for each of several domains."""

from typing import Any

import keras
import numpy as np
from keras import backend, ops

from keras_bn._keras import attached_mask
from keras_bn.layers.batch_normalization import BatchNormalization, Shape
from keras_bn.layers.moving_statistics import MovingStatistics
from keras_bn.ops import _rows, _settings
from keras_bn.ops.batch_norm import Prepared, replicas


@keras.saving.register_keras_serializable(package="keras_bn")
class DomainBatchNormalization(BatchNormalization):
    """Batch normalization with statistics, and gamma and beta, for each domain.

    With d the domain that the call names, and mean and variance taken over the samples
    of that domain in the batch:

        y = gamma[d] * (x - mean) / sqrt(variance + epsilon) + beta[d]
        moving_mean[d]     = moving_mean[d]     * momentum + mean     * (1 - momentum)
        moving_variance[d] = moving_variance[d] * momentum + variance * (1 - momentum)

    In inference `moving_mean[d]` and `moving_variance[d]` stand in for the batch's. The
    other domains' statistics stay as they are, bit by bit.

    The domain is a number for the whole batch, or one for each sample: a batch of two
    domains is then normalized as two batches. That takes a pass over the batch for each
    domain there is, in training and in inference; one number takes one.

    Args:
        domains: Integer, how many domains there are.
        axis: Integer, the feature axis, or a list or tuple of them.
        share_affine: Whether all domains have one gamma and beta, of shape
            `(channels,)`, in place of one each, of shape `(domains, channels)`.
        **kwargs: The other arguments of `BatchNormalization`, each for all domains.
            Initializers give one domain's values, with which all of them start.
            `accumulation_steps` counts the training calls of each domain; a call with a
            domain a sample is one of every domain. With `synchronized=True` replicas
            may have different domains, and the statistics of each are those of its
            samples on all of them: a pass and a gather for each domain.
            `virtual_batch_size` wants batches of one domain, for it makes groups by
            position: with a domain a sample, in training or not, it is an error.

    Call arguments:
        inputs: Tensor of rank 2 or more, as for `BatchNormalization`.
        domain: Integer in [0, domains), or a scalar tensor of an integer dtype, which a
            graph takes any value of without being traced anew; or a tensor of them of
            shape `(batch,)`, as of `keras.Input((), dtype="int32")`.
        training: Whether to use (and average) the statistics of the batch.
        mask: Boolean tensor, as for `BatchNormalization`.

    Returns:
        Tensor of the shape of `inputs`, in the layer's compute dtype. In a graph, or
        where the domain lies on an accelerator, the output of a domain that is out of
        range is NaN, and no statistic moves.

    Raises:
        TypeError: `domain` is not an integer, or a tensor of integers; and as
            `BatchNormalization`.
        ValueError: `domain` is out of range, wherever a look at it costs nothing; it
            has neither no axis nor one for the batch, or the batch's axis is a feature
            axis; there is one for each sample, and `virtual_batch_size`; and as
            `BatchNormalization`. A call that raises leaves every weight as it was.

    Weights are those of `BatchNormalization` with a first axis of `domains`. Those of
    domains that a step does not see get a gradient of zero: an optimizer with momentum
    or weight decay moves them all the same.

    Reference:
        [Chang et al., 2019](https://arxiv.org/abs/1906.03950), equations 4 to 6; with
        `share_affine=True`, [Li et al., 2016](https://arxiv.org/abs/1603.04779).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> layer = keras_bn.DomainBatchNormalization(domains=2, momentum=0.0)
    >>> photos, sketches = np.array([[1.0], [3.0]]), np.array([[10.0], [30.0]])
    >>> y = layer(photos, domain=0, training=True)
    >>> y = layer(sketches, domain=1, training=True)
    >>> keras.ops.convert_to_numpy(layer.moving_mean).tolist()
    [[2.0], [20.0]]
    >>> both = layer(np.array([[2.0], [20.0]]), domain=np.array([0, 1]))
    >>> keras.ops.convert_to_numpy(both).tolist()
    [[0.0], [0.0]]
    """

    def __init__(
        self,
        domains: int,
        axis: int | list[int] | tuple[int, ...] = -1,
        *,
        share_affine: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, **kwargs)
        self.domains = _settings.positive_integer("domains", domains)
        self.share_affine = _settings.boolean("share_affine", share_affine)

    def _add_parameter(self, name: str, shape: Shape, initializer: Any) -> Any:
        if not self.share_affine:
            shape = (self.domains, *shape)
            initializer = _rows.several(initializer)
        return super()._add_parameter(name, shape, initializer)

    def _statistics(self, domain: Any = None) -> "DomainStatistics":
        return DomainStatistics(self, domain)

    def __call__(self, inputs: Any, domain: Any, **kwargs: Any) -> Any:
        """Calls the layer; see the class."""
        if not (ops.is_tensor(domain) or backend.is_keras_tensor(domain)):
            # Before Keras makes a tensor of it, where 2 ** 32 may be 0.
            domain = _rows.row_number("domain", domain, self.domains)
        # Keras lets nothing but tensors pass by position.
        return super().__call__(inputs, domain=domain, **kwargs)

    def compute_output_spec(  # type: ignore[override]
        self, inputs: Any, domain: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """The output in a functional model, whose mistakes show here, not in `fit`."""
        self._check_inputs(inputs, mask)
        if backend.is_keras_tensor(domain):
            _rows.integer_dtype("domain", domain)
        else:
            domain = _rows.row_number("domain", domain, self.domains)
        self._check_domain(domain, inputs)
        return keras.layers.Layer.compute_output_spec(
            self, inputs, domain, training=training, mask=mask
        )

    def call(  # type: ignore[override]
        self, inputs: Any, domain: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """Normalizes `inputs`; see the class."""
        domain = _rows.row_number("domain", domain, self.domains)
        self._check_domain(domain, inputs)
        # Keras hands it on only where the inputs are the one tensor in a call.
        mask = attached_mask(inputs) if mask is None else mask
        training = _settings.boolean_training(training)
        by_batch = training or self.inference_statistics == "batch"
        # Replicas whose domains differ must not take part in the same statistics.
        apart = by_batch and self.synchronized and self._has_replicas(inputs)
        if apart or not (isinstance(domain, int) or len(domain.shape) == 0):
            return self._by_domain(inputs, domain, training, mask)
        return self._normalize(inputs, training, mask, self._statistics(domain))

    def _has_replicas(self, inputs: Any) -> bool:
        return replicas(self.replica_groups, (inputs,)) is not None

    def _check_domain(self, domain: Any, inputs: Any) -> None:
        if isinstance(domain, int) or not len(domain.shape):
            return
        shape, batch = tuple(domain.shape), inputs.shape[0]
        if len(shape) > 1 or (None not in (shape[0], batch) and shape[0] != batch):
            raise ValueError(
                "Argument `domain` must be a scalar, or have one value for each "
                f"sample: shape ({batch},). Received: domain of shape {shape} for "
                f"inputs of shape {tuple(inputs.shape)}"
            )
        if 0 in self._axes(inputs.shape).features:
            raise ValueError(
                "Argument `domain` must be a scalar where the batch's axis is a "
                f"feature axis. Received: domain of shape {shape}, axis={self.axis}"
            )
        if self.virtual_batch_size is not None:
            raise ValueError(
                "Argument `domain` must be a scalar where `virtual_batch_size` is "
                "given, which makes groups of samples by their position: they would "
                "mix domains. Call the layer on batches of one domain each, or set "
                f"`virtual_batch_size=None`. Received: domain of shape {shape}, "
                f"virtual_batch_size={self.virtual_batch_size}"
            )

    def _by_domain(self, inputs: Any, domain: Any, training: bool, mask: Any) -> Any:
        """Each sample by the statistics of its domain: a pass for each domain."""
        ndim = len(inputs.shape)
        by_batch = training or self.inference_statistics == "batch"
        y = None
        for number in range(self.domains):
            here = ops.reshape(ops.equal(domain, number), (-1, *[1] * (ndim - 1)))
            one = self._normalize(
                inputs,
                training,
                self._mask_of_domain(here, mask, inputs) if by_batch else mask,
                self._statistics(number),
            )
            y = ops.full_like(one, float("nan")) if y is None else y
            y = ops.where(here, one, y)
        return y

    def _mask_of_domain(self, here: Any, mask: Any, inputs: Any) -> Any:
        """`mask`, but for the samples that are not `here`."""
        rank = len(inputs.shape)
        if mask is None:
            rank -= len(self._axes(inputs.shape).features)
        else:
            self._mask_lacks(mask, inputs)
            rank = len(mask.shape)
        here = ops.reshape(here, (-1, *[1] * (rank - 1)))
        return here if mask is None else here & ops.cast(mask, "bool")

    def _parameter(
        self, name: str, given: Prepared, statistics: Any, default: float
    ) -> Any:
        value = super()._parameter(name, given, statistics, default)
        if name == "beta" and not isinstance(statistics.domain, int):
            # Of a domain out of range, whose training sees no average of it.
            known = ops.zeros((self.domains,), dtype=given.dtype)
            value = value + _rows.take_rows(known, statistics.domain)
        return value

    def reset_statistics(self, domain: int | None = None) -> None:
        """Gives the moving statistics of a domain their initial values again.

        Args:
            domain: Integer in [0, domains); None for all of them.

        See `BatchNormalization.reset_statistics`.
        """
        every = range(self.domains)
        if domain is not None:
            every = [_rows.single_number("domain", domain, self.domains)]  # type: ignore[assignment]
        for number in every if self.built else ():
            self._statistics(number).reset()

    def domain_layer(self, domain: int) -> BatchNormalization:
        """One domain as a plain layer, with weights of its own: to export, or to fold.

        Args:
            domain: Integer in [0, domains).

        Returns:
            A built `keras_bn.BatchNormalization` of the same name and settings.

        Raises:
            TypeError: `domain` is not an integer.
            ValueError: It is out of range, or the layer is not built.
        """
        domain = _rows.single_number("domain", domain, self.domains)
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' must be built before a domain can be taken out: "
                "call it on data, or `build(input_shape)`. Received: an unbuilt layer"
            )
        config = self.get_config()
        for name in _OWN:
            del config[name]
        layer: BatchNormalization = BatchNormalization.from_config(config)
        layer.build_from_config(self.get_build_config())
        for target in layer.weights:
            source = getattr(self, target.name)
            value = np.array(ops.convert_to_numpy(source))
            target.assign(value if value.ndim == len(target.shape) else value[domain])
            target.trainable = source.trainable
        return layer

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialized."""
        own = {name: getattr(self, name) for name in _OWN}
        return {**super().get_config(), **own}


_OWN = ("domains", "share_affine")


class DomainStatistics(MovingStatistics):
    """The statistics of one domain; its gamma and beta too.

    Args:
        layer: A `DomainBatchNormalization`.
        domain: The number of the domain, or a scalar tensor; None to create weights.
    """

    def __init__(self, layer: DomainBatchNormalization, domain: Any) -> None:
        super().__init__(layer)
        self.domain = domain

    def add(self, name: str, shape: Shape, initializer: Any) -> None:
        """Creates the weight `name`, with a row for each domain."""
        rows = _rows.several(initializer)
        super().add(name, (self._layer.domains, *shape), rows)

    def value(self, name: str) -> Any:
        """The domain's row of the weight `name`; NaN where there is none."""
        value = super().value(name)
        if self._layer.share_affine and name in ("gamma", "beta"):
            return value
        return _rows.take_rows(value, self.domain)

    def assign(self, name: str, value: Any) -> None:
        """Makes `value` the domain's row of the statistic `name`."""
        table = super().value(name)
        super().assign(name, _rows.with_row(table, self.domain, value))
