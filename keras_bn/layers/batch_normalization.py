"""The layer: weights, configuration, and when to use which statistics."""

import warnings
from typing import Any

import keras
import numpy as np
from keras import activations, backend, constraints, initializers, ops, regularizers

from keras_bn._keras import convert_arguments, converts_arguments
from keras_bn.layers import schedules
from keras_bn.layers.call_arguments import AsItIs, as_it_was, check_shapes
from keras_bn.layers.moving_statistics import MovingStatistics
from keras_bn.ops import (
    _arguments,
    _counts,
    _replica_groups,
    _settings,
    statistics_dtype,
)
from keras_bn.ops.batch_norm import Prepared, as_tensor, infer, prepare, train
from keras_bn.ops.ghost_batches import (
    fewest_samples,
    ghost_batch_size,
    refuse_samples_as_features,
    train_ghost_batches,
)
from keras_bn.ops.moving_average import require_own_weights, same_device

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="keras_bn")
class BatchNormalization(keras.layers.Layer):  # type: ignore[misc]
    """Normalizes each feature over the mini-batch, then scales and shifts it.

    In training (`training=True`, as in `fit()`), with the mean and the biased variance
    of each feature taken over the batch and all other axes:

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
        moving_mean     = moving_mean     * momentum + mean     * (1 - momentum)
        moving_variance = moving_variance * momentum + variance * (1 - momentum)

    In inference (the default, as in `evaluate()` and `predict()`), the moving averages
    stand in for the batch's statistics, so that a single sample gives the same output
    alone as in any batch.

    The layer is a drop-in for `keras.layers.BatchNormalization`: same arguments,
    weights and files. Beyond it:

    - numbers as exact as their dtype allows, at any mean, on every backend;
    - the moving statistics and their arithmetic are float32 (float64 for a float64
      layer) whatever the dtype policy;
    - an empty or fully masked batch leaves the moving statistics as they were, and so
      does a NaN or infinity, for the channels that it touches (the output shows it);
    - `axis` may name several axes, and a mask works with any axis.

    Args:
        axis: Integer, the feature axis (1 after a `Conv2D` with
            `data_format="channels_first"`), or a list or tuple of integers: one
            statistic for each combination of their positions.
        momentum: Number in [0, 1]: the share of the moving average that is *kept* at
            each step (PyTorch's `momentum` is the share that is replaced). Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another serializable
            function of the step; see below. Or None, for the plain average: the mean
            and the variance of all values so far, see below.
        epsilon: Number above 0, added to the variance.
        center: Whether to add `beta`.
        scale: Whether to multiply by `gamma`.
        beta_initializer: Initializer of beta.
        gamma_initializer: Initializer of gamma.
        moving_mean_initializer: Initializer of the moving mean.
        moving_variance_initializer: Initializer of the moving variance.
        beta_regularizer: Optional regularizer of beta.
        gamma_regularizer: Optional regularizer of gamma.
        beta_constraint: Optional constraint on beta.
        gamma_constraint: Optional constraint on gamma.
        renorm: Whether to use [Batch Renormalization](https://arxiv.org/abs/1702.03275):
            training then sees the moving statistics too. Inference is the same.
        renorm_clipping: Dictionary with optional keys `"rmax"`, `"rmin"`, `"dmax"` that
            limit the correction `(r, d)` to [rmin, rmax] and [-dmax, dmax]. Each a
            number, or a schedule as for `momentum`.
        renorm_momentum: Number in [0, 1], or a schedule: the share kept by the moving
            statistics that the correction uses.
        synchronized: Whether the statistics are those of all replicas together: the
            devices or processes that train one model under `tf.distribute`, JAX's
            `shard_map` or `pmap`, or `torch.distributed` (`DistributedDataParallel`).
            One process alone, without such an engine, costs nothing.
        activation: Activation applied to the output, as in other Keras layers; None
            for none. Where its gradient can be had from its output (relu, relu6,
            leaky_relu, elu, selu, sigmoid, tanh), training keeps no tensor for it.
        accumulation_steps: Integer: move the averages once in as many training calls,
            by the moments of all these batches merged. Give it the
            `gradient_accumulation_steps` of the optimizer. Each batch is still
            normalized by its own statistics.
        virtual_batch_size: Integer: "ghost batches". In training each group of so many
            samples (of axis 0, one after the other; what is left over is a group too)
            is normalized by its own mean and variance, for the regularization of
            small batches at the speed of large ones. The moving averages take in the
            moments of the whole batch: those of the groups, merged. Inference is the
            same. With `synchronized`, groups stay within their replica, and only the
            moving averages are of all replicas. Not together with `renorm`, which
            takes out of each batch what groups put in. See
            [Hoffer et al., 2017](https://arxiv.org/abs/1705.08741).
        freeze_statistics: Whether training, too, normalizes by the moving averages and
            leaves them as they are, while gamma and beta train: for fine-tuning. May
            be set on the layer (before `compile()`, as `trainable`).
        zero_debias: Whether the moving averages are those of the batches alone, without
            the initial values; see below.
        inference_statistics: `"moving"`, or `"batch"`: inference, too, normalizes by
            the statistics of the batch (those of `mask`, and of all replicas where
            `synchronized`), and moves nothing. A sample's output then depends on the
            rest of its batch, and on `batch_size`. May be set on the layer, as
            `freeze_statistics`, which contradicts it.
        replica_groups: Which replicas take their statistics together, with
            `synchronized=True`; all of them if None. A list of lists of replica
            indices, such as `[[0, 1], [2, 3]]`; on JAX also the name of a manual axis
            or a list of names, on PyTorch a `torch.distributed.ProcessGroup`, which is
            saved as its ranks. See `keras_bn.ops.batch_norm_train`. The moving
            statistics are each group's own; on TensorFlow the average of all.
        **kwargs: Keyword arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of rank 2 or more, of any real dtype. The sizes of the feature
            axes must be known when the layer is built, all others may be unknown.
        training: Whether to use (and average) the statistics of the batch.
        mask: Boolean tensor: which positions the statistics are taken over. It has the
            shape of `inputs` without the feature axis, or without the last axis (as
            `keras.layers.Masking` propagates it), or broadcasts to one of these at
            equal rank. Where both forms fit, it is the first. All positions are
            normalized, masked out or not. Floats other than 0 and 1 are an error: see
            `weights`.
        weights: How often each position counts in the statistics: finite numbers, not
            negative, of the shapes that a mask may have, beside which they may be
            given. Integers give what as many repeated samples would. See
            `keras_bn.ops.batch_norm_train` for the formula, and for the gradient that
            they have. They keep their precision under any dtype policy.
        residual: Added before the activation, in inference too, in the compute dtype:
            `activation(norm(inputs) + residual)`. It has the shape of `inputs`.

    Returns:
        Tensor of the shape of `inputs`, in the layer's compute dtype.

    Raises:
        TypeError: An argument of a wrong type; inputs that are not real numbers.
        ValueError: An argument out of its range; an axis that the inputs do not have or
            whose size is unknown; a mask, weights or a residual that do not fit;
            weights that are negative, infinite or NaN (in a compiled step, and on an
            accelerator, the output is NaN, and the moving statistics stay as they are);
            float64 where the backend does not compute in it;
            `synchronized` under an engine that cannot serve it; `replica_groups` that
            are not groups of the replicas that run; training inside `keras.remat` on
            JAX, which lets no update out. A call that raises leaves every weight as it
            was.

    Warns:
        UserWarning: Once per layer, when it trains on one sample per channel: a value
            minus itself is 0, so the output is `beta` whatever the input.

    `trainable = False` freezes the layer: gamma and beta are not trained, and it runs
    in inference mode even where `training=True`.

    With `momentum=None`, the moments of all batches so far, merged by their counts n
    (`keras_bn.ops.merge_moments`): for any split of the same values into batches these
    are their mean and their biased variance, which has the spread of the batches' means
    in it. (PyTorch's average, of batches that count alike, has not.) With N the count
    before and d = mean - moving_mean:

        moving_mean     = moving_mean + d * n / (N + n)
        moving_variance = (moving_variance * N + variance * n) / (N + n)
                          + d² * N * n / (N + n)²

    With `zero_debias=True`, averages that start at 0 and are divided by the weight that
    all batches have in them, 1 - momentum^t after t steps (1 less the product of the
    momenta, by a schedule). The weights hold what is left after the division, so that
    inference and other tools read them as always. With W that sum of weights:

        kept = momentum * W_before / W         W = W_before * momentum + 1 - momentum
        moving_mean = moving_mean * kept + mean * (1 - kept)

    and so for the others; `renorm_momentum` has a W of its own. After one step they are
    the batch's statistics. Before it, with `momentum=None` too, they are what the
    initializers say. Counts and weights are kept channel by channel, and saved.

    A schedule is called with the number of updates so far, a float32 scalar tensor that
    starts at 0 (with `accumulation_steps`, in optimizer's steps), and gives a number or
    a scalar tensor: write functions in `keras.ops`, and register them by
    `keras.saving.register_keras_serializable()`. What it gives at step 0 is checked;
    later a momentum is clipped to [0, 1], and where rmax is below rmin, rmax counts.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> layer = keras_bn.BatchNormalization(momentum=0.9)
    >>> batch = np.array([[1.0, 100.0], [3.0, 300.0]], "float32")
    >>> np.round(keras.ops.convert_to_numpy(layer(batch, training=True)), 2).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> print(keras.ops.convert_to_numpy(layer.moving_mean).round(2))
    [ 0.2 20. ]
    """

    def __init__(
        self,
        axis: int | list[int] | tuple[int, ...] = -1,
        momentum: float | schedules.Schedule | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float | schedules.Schedule] | None = None,
        renorm_momentum: float | schedules.Schedule = 0.99,
        synchronized: bool = False,
        *,
        activation: Any = None,
        accumulation_steps: int = 1,
        virtual_batch_size: int | None = None,
        freeze_statistics: bool = False,
        zero_debias: bool = False,
        inference_statistics: str = "moving",
        replica_groups: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _arguments.float_policy(self.dtype_policy)
        self.axis = _settings.integer_axis(axis)
        self.momentum = (
            None if momentum is None else schedules.momentum("momentum", momentum)
        )
        self.epsilon = _settings.positive_epsilon(epsilon)
        self.center = _settings.boolean_or_number("center", center)
        self.scale = _settings.boolean_or_number("scale", scale)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.renorm = _settings.boolean_or_number("renorm", renorm)
        # Like Keras, keep what a layer without renorm was given, unread.
        self.renorm_clipping = (
            schedules.limits(renorm_clipping) if self.renorm else renorm_clipping
        )
        self.renorm_momentum = schedules.momentum("renorm_momentum", renorm_momentum)
        self.synchronized = _settings.boolean("synchronized", synchronized)
        self.activation = activations.get(activation)
        self.accumulation_steps = _settings.positive_integer(
            "accumulation_steps", accumulation_steps
        )
        self.virtual_batch_size = ghost_batch_size(
            virtual_batch_size, self.axis, self.renorm
        )
        self.zero_debias = _settings.boolean("zero_debias", zero_debias)
        self.inference_statistics = inference_statistics
        self.freeze_statistics = freeze_statistics
        self.replica_groups = _replica_groups.replica_groups(
            replica_groups, self.synchronized
        )
        self._refuse_contradictions()
        self.supports_masking = True
        convert_arguments(self, False)  # see `__call__`

        self.gamma = None
        self.beta = None
        self.moving_mean: Any = None
        self.moving_variance = None
        self._parameter_shape: Any = None
        self._warned_of_single_samples = False

    @property
    def freeze_statistics(self) -> bool:
        """Whether training normalizes by the moving averages; see the class."""
        return self._freeze_statistics

    @freeze_statistics.setter
    def freeze_statistics(self, value: bool) -> None:
        value = _settings.boolean("freeze_statistics", value)
        _refuse_both(value, self.inference_statistics)
        self._freeze_statistics = value

    @property
    def inference_statistics(self) -> str:
        """What inference normalizes by, `"moving"` or `"batch"`; see the class."""
        return self._inference_statistics

    @inference_statistics.setter
    def inference_statistics(self, value: str) -> None:
        if value not in ("moving", "batch"):
            raise ValueError(
                'Argument `inference_statistics` must be "moving" or "batch". '
                f"Received: inference_statistics={value!r}"
            )
        _refuse_both(getattr(self, "_freeze_statistics", False), value)
        self._inference_statistics = value

    def _refuse_contradictions(self) -> None:
        if self.momentum is None and self.zero_debias:
            raise ValueError(
                "Argument `zero_debias` must be False where `momentum` is None: the "
                "plain average has no initial value in it. Received: momentum=None, "
                "zero_debias=True"
            )
        unread = self.renorm_clipping if isinstance(self.renorm_clipping, dict) else {}
        settings = {"renorm_momentum": self.renorm_momentum} | {
            f"renorm_clipping[{key!r}]": value for key, value in unread.items()
        }
        for name, value in settings.items():
            if callable(value) and not self.renorm:
                raise ValueError(
                    f"Argument `renorm` must be True where `{name}` is a schedule. "
                    f"Received: renorm={self.renorm!r}, {name}={value!r}"
                )

    def reset_statistics(self) -> None:
        """Gives the moving statistics their initial values again.

        With them renorm's, what is accumulated, counts, weights, and the step that
        schedules go by. Gamma and beta stay. A layer that is not built has nothing to
        reset.

        Raises:
            ValueError: Within a function that is traced (on JAX) or transformed, where
                new values could not get out; call it outside.

        Example:

        >>> import keras_bn, numpy as np
        >>> layer = keras_bn.BatchNormalization(momentum=None)
        >>> y = layer(np.array([[2.0], [4.0]], "float32"), training=True)
        >>> float(layer.moving_mean[0])
        3.0
        >>> layer.reset_statistics()
        >>> float(layer.moving_mean[0]), float(layer.moving_count[0])
        (0.0, 0.0)
        """
        if self.built:
            self._statistics().reset()

    def build(self, input_shape: Shape) -> None:
        """Creates the weights, one value per channel, in the order that Keras has."""
        _arguments.require_one_tensor(input_shape)
        axes = _arguments.resolve_axes(self.axis, input_shape)
        if self.virtual_batch_size is not None and 0 in axes.features:
            refuse_samples_as_features(self.axis, self.virtual_batch_size)
        shape = axes.parameter_shape(tuple(input_shape))
        self._parameter_shape = shape
        if self.scale:
            self.gamma = self._add_parameter("gamma", shape, self.gamma_initializer)
        if self.center:
            self.beta = self._add_parameter("beta", shape, self.beta_initializer)
        self._statistics().create(shape)
        self.input_spec = keras.InputSpec(
            ndim=len(input_shape),
            axes={axis: input_shape[axis] for axis in axes.features},
        )

    def _add_parameter(self, name: str, shape: Shape, initializer: Any) -> Any:
        return self.add_weight(
            shape=shape,
            name=name,
            initializer=initializer,
            regularizer=getattr(self, f"{name}_regularizer"),
            constraint=getattr(self, f"{name}_constraint"),
            autocast=False,
        )

    def _statistics(self) -> MovingStatistics:
        return MovingStatistics(self)

    def _axes(self, shape: Shape) -> Any:
        if self._parameter_shape is not None:
            built = self._parameter_shape
            shape = _arguments.with_built_channels(self.axis, shape, built)
        return _arguments.resolve_axes(self.axis, shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the inputs."""
        self._axes(input_shape)
        return input_shape

    def compute_output_spec(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        *,
        weights: Any = None,
        residual: Any = None,
    ) -> Any:
        """The output in a functional model, whose mistakes show here, not in `fit`."""
        self._check_inputs(inputs, mask, weights, residual)
        along = {
            "training": training,
            "mask": mask,
            "weights": weights,
            "residual": residual,
        }
        # Subclasses may have a `call` without them.
        along = {name: one for name, one in along.items() if one is not None}
        return super().compute_output_spec(inputs, **along)

    def _check_inputs(
        self, inputs: Any, mask: Any, weights: Any = None, residual: Any = None
    ) -> None:
        shape = tuple(inputs.shape)
        axes = self._axes(shape)
        _arguments.real_dtype("inputs", inputs)
        check_shapes(shape, axes, mask, weights, residual)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask, if it lacks the last axis: later layers know no other kind."""
        if previous_mask is None:
            return None
        last = (len(inputs.shape) - 1,)
        return (
            previous_mask if self._mask_lacks(previous_mask, inputs) == last else None
        )

    def _mask_lacks(self, mask: Any, inputs: Any) -> tuple[int, ...] | None:
        shape = tuple(inputs.shape)
        axes = self._axes(shape)
        return None if mask is None else _counts.mask_lacks(mask, shape, axes)

    # What comes along with the inputs, which Keras would round to the compute dtype.
    _along: tuple[str, ...] = ("weights", "residual")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; see the class."""
        inputs = args[0] if args else kwargs.get("inputs")
        if isinstance(inputs, dict):  # which is an error of the framework's, once built
            _arguments.require_one_tensor(
                {key: tuple(getattr(one, "shape", ())) for key, one in inputs.items()}
            )
        if isinstance(inputs, np.ndarray):
            # Keras makes it a tensor before `call` sees it. Where that fails, for
            # strings say, it is the framework's error, and names no argument.
            _arguments.real_dtype("inputs", inputs)
        if not converts_arguments(self) and not (
            len(args) <= 1
            and self._is_converted(inputs)
            and (kwargs.get("mask") is None or ops.is_tensor(kwargs["mask"]))
        ):
            # Keras looks through all arguments for what to convert, which on torch
            # takes longer than a small batch: only once there was something.
            convert_arguments(self, True)
        for name in self._along:
            if kwargs.get(name) is not None and not backend.is_keras_tensor(inputs):
                kwargs[name] = AsItIs(kwargs[name])
        return super().__call__(*args, **kwargs)

    def _is_converted(self, x: Any) -> bool:
        tensor = ops.is_tensor(x)
        if not (tensor or backend.is_keras_tensor(x)):
            return False
        if tensor and self.built and not same_device(x, self.moving_mean):
            return False
        return bool(backend.standardize_dtype(x.dtype) == self.input_dtype)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer_call` itself: `keras.RematScope` leaves this layer as it is.

        It keeps its input alone for the backward pass, as a recomputed layer would. On
        JAX, recomputing would also lose the update of the moving statistics.
        """
        return layer_call

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        *,
        weights: Any = None,
        residual: Any = None,
    ) -> Any:
        """Normalizes `inputs`; see the class."""
        statistics = self._statistics()
        return self._normalize(inputs, training, mask, statistics, weights, residual)

    def _normalize(
        self,
        inputs: Any,
        training: Any,
        mask: Any,
        statistics: MovingStatistics,
        weights: Any = None,
        residual: Any = None,
    ) -> Any:
        """`call`, with the moving statistics to use and to move."""
        weights = None if weights is None else as_it_was(weights)
        residual = None if residual is None else as_it_was(residual)
        require_own_weights(self)
        built = self._parameter_shape
        given = prepare(
            *(inputs, self.axis, "inputs", statistics_dtype(self.compute_dtype)),
            built=built,
        )
        shape = tuple(given.x.shape)
        # `input_spec` has not looked where the call came by `stateless_call`.
        _arguments.channels_as_built(shape, given.axes, built)
        # Also where inference will not use them: the mistake is there already.
        check_shapes(shape, given.axes, mask, weights, residual)
        residual = given.residual(residual)
        training = _settings.boolean_training(training)
        training = training and self.trainable and not self.freeze_statistics
        if training or self.inference_statistics == "batch":
            size = self.virtual_batch_size if training else None
            if fewest_samples(given, size) == 1:
                self._warn_of_single_samples(shape, training)
            counts = given.counts(mask, weights)
            y = self._by_batch(given, counts, statistics, training, residual)
        else:
            y = infer(
                given,
                as_tensor(statistics.value("moving_mean"), given.dtype),
                as_tensor(statistics.value("moving_variance"), given.dtype),
                self._parameter("gamma", given, statistics, default=1),
                self._parameter("beta", given, statistics, default=0),
                self.epsilon,
                self._fused_activation,
                residual,
            )
        return as_tensor(y, self.compute_dtype)

    def _parameter(
        self, name: str, given: Prepared, statistics: MovingStatistics, default: float
    ) -> Any:
        """Gamma or beta as the kernels take them, one value per channel."""
        if getattr(self, name) is None:
            return given.parameter(name, None, default)
        return as_tensor(statistics.value(name), given.dtype)

    @property
    def _fused_activation(self) -> Any:
        """What the kernels apply to the output of gamma and beta."""
        return self.activation

    def _by_batch(
        self,
        given: Prepared,
        counts: Any,
        statistics: MovingStatistics,
        training: bool,
        residual: Any,
    ) -> Any:
        """The output by the batch's statistics, which in training move `statistics`."""
        corrected = training and self.renorm
        correction = statistics.renorm_correction if corrected else None
        gamma = self._parameter("gamma", given, statistics, default=1)
        beta = self._parameter("beta", given, statistics, default=0)
        parameters = (given, gamma, beta, self.epsilon, counts)
        ending = (self._fused_activation, self.synchronized, self.replica_groups)
        size = self.virtual_batch_size if training else None
        if size is None:
            y, moments = train(*parameters, correction, *ending, residual)
        else:
            y, moments = train_ghost_batches(*parameters, size, *ending, residual)
        if training:
            statistics.update(moments)
        return y

    def _warn_of_single_samples(self, shape: Shape, training: bool) -> None:
        if self._warned_of_single_samples:
            return
        self._warned_of_single_samples = True
        mode, instead = (
            ("training mode", "inference mode")
            if training
            else ('inference by inference_statistics="batch"', 'set it to "moving"')
        )
        size = self.virtual_batch_size if training else None
        of_a_group = "" if size is None else f" in a group (virtual_batch_size={size})"
        warnings.warn(
            f"Layer '{self.name}' was called in {mode} on inputs of shape "
            f"{shape}, with one sample per channel{of_a_group}: the output is beta "
            "whatever the input, and no gradient flows back. Use a larger batch, or "
            f"{instead}.",
            UserWarning,
            stacklevel=2,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialized, under the names that Keras uses."""
        config = {
            "axis": list(self.axis) if isinstance(self.axis, tuple) else self.axis,
            "momentum": schedules.serialized(self.momentum),
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "synchronized": self.synchronized,
            "renorm": self.renorm,
            "renorm_clipping": schedules.serialized(self.renorm_clipping),
            "renorm_momentum": schedules.serialized(self.renorm_momentum),
        }
        for module, kind, names in (
            (initializers, "initializer", _INITIALIZED),
            (regularizers, "regularizer", ("beta", "gamma")),
            (constraints, "constraint", ("beta", "gamma")),
        ):
            for name in names:
                argument = f"{name}_{kind}"
                config[argument] = module.serialize(getattr(self, argument))
        if self.activation is not activations.linear:
            # Left out otherwise, so that Keras's own layer can read the config.
            config["activation"] = activations.serialize(self.activation)
        if self.accumulation_steps > 1:
            config["accumulation_steps"] = self.accumulation_steps
        if self.virtual_batch_size is not None:
            config["virtual_batch_size"] = self.virtual_batch_size
        if self.freeze_statistics:
            config["freeze_statistics"] = True
        if self.zero_debias:
            config["zero_debias"] = True
        if self.inference_statistics != "moving":
            config["inference_statistics"] = self.inference_statistics
        if self.replica_groups is not None:
            config["replica_groups"] = _replica_groups.serialized(self.replica_groups)
        return {**super().get_config(), **config}


_INITIALIZED = ("beta", "gamma", "moving_mean", "moving_variance")


def _refuse_both(freeze_statistics: bool, inference_statistics: str) -> None:
    if freeze_statistics and inference_statistics == "batch":
        raise ValueError(
            "Argument `freeze_statistics`, with which training normalizes by the "
            'moving averages, must be False where `inference_statistics` is "batch". '
            "Received: freeze_statistics=True, inference_statistics='batch'"
        )
