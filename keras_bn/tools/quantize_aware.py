"""Training that sees the rounding to eight bits which the folded model will have."""

import warnings
from itertools import count
from typing import Any

from keras_bn.ops import _settings
from keras_bn.tools._copies.carry import carry_compile, made_like
from keras_bn.tools._copies.rebuild import SAME, Replacement, rebuild
from keras_bn.tools._copies.residual import with_sums
from keras_bn.tools._folding import linear_layers
from keras_bn.tools._folding.chains import Chain, Chains, ends, reads_inputs
from keras_bn.tools._folding.fake_quantize import FakeQuantize
from keras_bn.tools._folding.quantized_linear import (
    QuantizedLinear,
    fill_part,
    is_quantize_aware,
)
from keras_bn.tools._graphs.walk import (
    Layer,
    batch_norms,
    computes_plainly,
    has_graph,
    why_not_plainly,
)
from keras_bn.tools.fold import FoldReport

LORA = ("lora_rank", "lora_alpha")
"""Left out: the kernel that is read has the low-rank update in it."""


def quantize_aware(
    model: Any,
    per_channel: bool = True,
    activations: bool = True,
    momentum: float = 0.99,
    explain: bool = False,
) -> Any:
    """A copy of `model` that trains with the rounding of its int8 deployment.

    A deployed graph has batch norm multiplied into the linear layer before (or after)
    it, and the product rounded to eight bits. So each linear layer here computes with

        scale  = gamma / sqrt(moving_variance + epsilon)
        kernel = fake_quantize(kernel * scale) / scale

    and the batch norm follows as ever: in training it normalizes by the batch, while
    the rounding follows the moving average, which does not jump from step to step.
    Gradients take the rounding for the identity. Train in two phases:

        model = keras_bn.quantize_aware(model)
        model.compile(...)
        model.fit(...)                                           # batch statistics
        model = keras_bn.convert(model, freeze_statistics=True)
        model.fit(...)                                           # as deployed
        deployed = keras_bn.fold(model)

    `fold` gives a model of plain layers for an exporter. Its weights lie on the levels
    that were trained with, so that rounding them to int8 changes nothing. The ranges
    of activations are the exporter's to find, from data.

    Weights of all linear layers in the model's graphs are rounded, with the batch norm
    that `fold` would fold into them, if any. Activations are rounded at the model's
    inputs, and after each layer that computes something, but for one followed by ReLU
    alone, which deployed graphs fuse. Layers inside wrappers and classes of your own
    are left as they are, and so are activations between the two parts of a separable
    convolution or before an `activation=` within a layer.

    Args:
        model: A built Functional or Sequential model, nested ones included.
        per_channel: Whether each output channel of a kernel has a step of its own, as
            in LiteRT; otherwise there is one for the kernel.
        activations: Whether to round activations too, to a range that is the moving
            average of the batches' smallest and largest values.
        momentum: The share of that average that is kept at each step.
        explain: Whether to return a `FoldReport` too: which batch norm is taken into
            which linear layer.

    Returns:
        The new model, or `(model, report)` with `explain=True`. Where `model` is
        compiled, it has the same loss and metrics, and a fresh optimizer.

    Raises:
        TypeError: `model` is not a Keras model; an argument of a wrong type.
        ValueError: It is not built, has no batch norm, is quantized or quantize-aware
            already, or is a subclassed model; `momentum` is outside [0, 1].

    Warns:
        UserWarning: The compile state, or the class of the model, cannot be carried;
            norms of several domains, of a gamma and beta for each sample, or of another
            class, which nothing can be multiplied with, stay in float (not with
            `explain`, whose report says it).

    Reference:
        [Jacob et al., 2018](https://arxiv.org/abs/1712.05877), section 3;
        [Krishnamoorthi, 2018](https://arxiv.org/abs/1806.08342), section 3.2.2.

    Example:

    >>> import keras, keras_bn
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, use_bias=False),
    ...     keras_bn.BatchNormalization(), keras.layers.ReLU(),
    ... ])
    >>> trains = keras_bn.quantize_aware(model)
    >>> [layer.__class__.__name__ for layer in trains.layers]
    ['QuantizedLinear', 'ReLU', 'FakeQuantize']
    >>> [layer.__class__.__name__ for layer in keras_bn.fold(trains).layers]
    ['Conv2D', 'ReLU']
    """
    per_channel = _settings.boolean("per_channel", per_channel)
    activations = _settings.boolean("activations", activations)
    explain = _settings.boolean("explain", explain)
    momentum = _settings.momentum_in_range("momentum", momentum)
    batch_norms(model)
    _check_model(model)
    plain = with_sums(model)
    plan = Chains(plain)
    rounded = ends(plan) if activations else set()
    firsts = {id(chain.layers[0]): chain for chain in plan.chains.values()}
    later = {id(one) for chain in firsts.values() for one in chain.layers[1:]}

    def replace(layer: Layer) -> Replacement | None:
        if id(layer) in firsts:
            chain = firsts[id(layer)]
            first = activations and reads_inputs(plan, chain)
            block = _block(chain, per_channel, momentum if first else None)
            return Replacement(block, _after(chain.layers[-1], rounded, momentum))
        if id(layer) in later:
            return Replacement(None)
        if id(layer) in rounded:
            return Replacement(SAME, _after(layer, rounded, momentum))
        return None

    def fill(old: Layer, new: QuantizedLinear) -> None:
        parts = [one for one in new.layers if not isinstance(one, FakeQuantize)]
        for source, target in zip(firsts[id(old)].layers, parts, strict=True):
            fill_part(source, target)

    copy = rebuild(plain, replace, fill)
    carry_compile(model, copy, slots=False)
    if not explain:
        _warn_of_floats(plain)
    return (copy, FoldReport(plan.foldings)) if explain else copy


def _warn_of_floats(model: Any) -> None:
    left = {
        path: layer
        for path, layer in batch_norms(model).items()
        if not computes_plainly(layer)
    }
    if left:
        path, layer = next(iter(left.items()))
        warnings.warn(
            f"{len(left)} batch normalization layers of model '{model.name}' stay in "
            f"float, '{path}' the first: {why_not_plainly(layer)}. What comes before "
            "and after is rounded without them; `explain=True` gives all reasons.",
            UserWarning,
            stacklevel=3,
        )


def _check_model(model: Any) -> None:
    if is_quantize_aware(model):
        raise ValueError(
            "Argument `model` must not be quantize-aware already: train it on, or "
            f"`fold` it first. Received: model '{model.name}'"
        )
    if not has_graph(model):
        raise ValueError(
            "Argument `model` must be a Functional or Sequential model: in a "
            "subclassed one it is not known which layer follows which. Use the "
            "functional models inside it. Received: model of class "
            f"{type(model).__name__}"
        )


def _block(
    chain: Chain, per_channel: bool, input_momentum: float | None
) -> QuantizedLinear:
    layers = [made_like(one, LORA) for one in chain.layers]
    (linear,) = (one for one in layers if linear_layers.is_linear(one))
    if input_momentum is not None:
        name = f"{linear.name}_inputs"
        dtype = linear.variable_dtype
        layers.insert(0, FakeQuantize(input_momentum, name=name, dtype=dtype))
    return QuantizedLinear(layers, per_channel, name=linear.name)


def _after(layer: Layer, rounded: set[int], momentum: float) -> tuple[Any, ...]:
    """What rounds the activations after `layer`: something new for each call of it."""
    if id(layer) not in rounded:
        return ()
    numbers = count()

    def make() -> FakeQuantize:
        number = next(numbers)
        name = f"{layer.name}_fake_quantize" + (f"_{number}" if number else "")
        return FakeQuantize(
            momentum, name=name, dtype=getattr(layer, "variable_dtype", "float32")
        )

    return (make,)
