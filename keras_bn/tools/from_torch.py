"""Weights out of a PyTorch model: batch norm's, and on demand all others."""

from collections.abc import Mapping
from typing import Any

from keras_bn.ops import _settings
from keras_bn.tools._foreign.checkpoint import opened, torch_weights
from keras_bn.tools._foreign.pairs import Matching
from keras_bn.tools._foreign.transfer import transfer
from keras_bn.tools._foreign.weights import Options, matched


def from_torch(
    model: Any,
    state_dict: Any,
    mapping: Mapping[str, str] | None = None,
    *,
    epsilon: float | None = None,
    momentum: float | None = None,
    layers: str = "norms",
    strict: bool = True,
    key: str | None = None,
    count: int | Mapping[str, int] | None = None,
    flatten: str | None = None,
) -> Any:
    """A copy of `model` with the batch norm weights and statistics of a PyTorch model.

    PyTorch's `weight, bias, running_mean, running_var` become `gamma, beta,
    moving_mean, moving_variance`. What a state dict does not say, though outputs or
    further training depend on it, is to be stated:

    - epsilon, 1e-5 in PyTorch unless given, 1e-3 in Keras. A layer whose epsilon is not
      that of the PyTorch model would give other outputs: an error, unless `epsilon`
      says what it is there; the copy's layers then have it.
    - momentum, which in PyTorch is the share that is *replaced*: 0.1 there is 0.9 here.
      `momentum` takes PyTorch's number; without it the layers keep their own. In a
      module, None is the average of all batches, each alike; `momentum=None` here is
      nearest, and weighs them by their counts of values. How many values there were
      PyTorch does not know: in training that average starts from the next batch.
      Keras's own layer, and `zero_debias=True`, have no such average: an error, unless
      `momentum` is given, which then counts for these layers.
    - how many values n of a channel each batch had. PyTorch averages n / (n - 1) times
      the variance that it normalizes by, Keras that variance itself. Inference is the
      same with what PyTorch has, and so it is taken as it is; with `count`,

          moving_variance = running_var * (n - 1) / n

      as if Keras had trained the model.

    If `state_dict` is the `torch.nn.Module` itself, epsilon and momentum are read from
    its layers where they have them: `BatchNorm1d` to `3d`, `SyncBatchNorm`, and the
    frozen ones of torchvision and timm. `InstanceNorm` with running statistics is not
    batch norm, and is left out there. In a state dict the two look alike.

    Which weights are which layer's is told by names: equal ones, after what all of a
    side begin with (`model.`, `module.`, `backbone.`, ...) is taken off, and those that
    torchvision, timm, segmentation_models_pytorch and mmcv give to the layers of
    well-known networks, next to those of keras.applications, keras-hub and kimm. If no
    names match, sizes decide where each stands once, and order where layers of one size
    are called one after the other here and differ in a number there
    (`features.2`, `features.10`), unless sizes show, be it of kernels that are not
    asked for, that numbers do not follow the calls. Else it is an error that shows the
    candidates. `match_torch` shows the pairs.

    `model` is left as it was.

    Args:
        model: A built Keras model.
        state_dict: A PyTorch state dict (values may be tensors or arrays), a module, a
            checkpoint that holds one of these under some key, or the path of a file:
            `.safetensors`, or what `torch.save` wrote, of which tensors only are read.
        mapping: The prefix in the state dict for layers, by the layer's path, such as
            `{"stem_bn": "features.1"}`. Layers that it does not name are matched.
        epsilon: The PyTorch layers' `eps`, where a module does not say it.
        momentum: The PyTorch layers' `momentum`, where a module does not say it.
        layers: `"norms"`, or `"all"` for the kernels and biases of convolutions and
            dense layers too.
        strict: Whether each layer must get weights, and each weight of those kinds a
            layer. If False, layers without a counterpart by name keep theirs.
        key: Where in a checkpoint the state dict is, such as `"ema"`, if it has more.
        count: n, for all layers, or by the path of each.
        flatten: `"channels_first"` if the PyTorch model flattens images as
            `torch.nn.Flatten` does, `"channels_last"` if it moves the channels to the
            end before. Needed where one of the layers takes a flattened image, and an
            error elsewhere; in a subclassed model that cannot be seen, and nothing is
            reordered.

    Returns:
        The new model.

    Raises:
        TypeError: `model` is not a Keras model, `state_dict` not a state dict; an
            argument of a wrong type.
        ValueError: Names, sizes and order leave a choice; a weight of another size, one
            that is not finite, a negative variance; an epsilon that differs, is
            negative or not finite, or 0 for a layer of this package; momentum outside
            [0, 1], or None there, for a layer that has no such; a weight that a layer
            has no place for; with `layers="all"` and `strict`, weights of other kinds
            of layers; a file that cannot be read safely; an argument that is not as
            above.
        ImportError: The package that reads the file is not installed.

    Warns:
        UserWarning: Layers were paired by their order; the compile state cannot be
            carried.

    Reference:
        [torch.nn.BatchNorm2d](https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html).

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_bn.BatchNormalization(name="bn")]
    ... )
    >>> state = {"bn.running_mean": np.ones(2), "bn.running_var": np.full(2, 4.0)}
    >>> ours = keras_bn.from_torch(model, state, epsilon=1e-5, momentum=0.1)
    >>> bn = ours.layers[0]
    >>> bn.moving_mean.numpy().tolist(), bn.momentum, bn.epsilon
    ([1.0, 1.0], 0.9, 1e-05)
    """
    kept = None
    if momentum is not None:
        kept = 1.0 - _settings.momentum_in_range("momentum", momentum, "replaced")
    options = Options(mapping, layers, strict, epsilon, kept, count, flatten)
    return transfer(model, torch_weights(*opened(state_dict, key)), options)


def match_torch(
    model: Any,
    state_dict: Any,
    mapping: Mapping[str, str] | None = None,
    *,
    layers: str = "norms",
    strict: bool = True,
    key: str | None = None,
) -> Matching:
    """Which weights `from_torch` would give to which layer, and why; a table.

    Args:
        model: A built Keras model.
        state_dict: As in `from_torch`.
        mapping: As in `from_torch`.
        layers: As in `from_torch`.
        strict: As in `from_torch`.
        key: As in `from_torch`.

    Returns:
        The pairs, with what each rests on, and what is left over. `print` it; its
        `mapping` can be changed, and given to `from_torch`.

    Raises:
        TypeError: As from `from_torch`.
        ValueError: As from `from_torch`, where names, sizes and order leave a choice.
        ImportError: As from `from_torch`.

    Example:

    >>> import keras, keras_bn, numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras_bn.BatchNormalization(name="stem_bn")]
    ... )
    >>> state = {"net.stem.bn.running_mean": np.ones(2),
    ...          "net.stem.bn.running_var": np.ones(2)}
    >>> matching = keras_bn.tools.match_torch(model, state)
    >>> matching.mapping, matching.pairs[0].by
    ({'stem_bn': 'net.stem.bn'}, 'name')
    """
    options = Options(mapping, layers, strict)
    return matched(model, torch_weights(*opened(state_dict, key)), options)
