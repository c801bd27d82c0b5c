"""Batch normalization multiplied into the layers around it, for inference."""

import warnings
from typing import Any

from keras_bn.ops import _settings
from keras_bn.tools._copies.carry import Fill, carry_compile, made_like
from keras_bn.tools._copies.check import check_outputs
from keras_bn.tools._copies.converted import activation_layer, copy_batch_norm
from keras_bn.tools._copies.lasting import base_class
from keras_bn.tools._copies.rebuild import OutOfReach, Replace, Replacement, rebuild
from keras_bn.tools._copies.residual import with_sums
from keras_bn.tools._folding.chains import ChainPlan
from keras_bn.tools._folding.folded import Folded
from keras_bn.tools._folding.plan import Folding, Plan
from keras_bn.tools._folding.quantized_linear import is_quantize_aware, without_rounding
from keras_bn.tools._folding.takers import taker
from keras_bn.tools._folding.takes import folded_weights
from keras_bn.tools._graphs.walk import Layer, batch_norms, is_batch_norm
from keras_bn.tools._reports.table import Table


class FoldReport(Table):
    """What `fold` did with each batch norm layer; `print` shows it as a table.

    Attributes:
        rows: One `Folding(layer, into, reason)` a batch norm layer, in model order.
    """

    def __init__(self, rows: list[Folding]) -> None:
        self.rows = rows

    @property
    def folded(self) -> list[Folding]:
        """The layers that were folded."""
        return [row for row in self.rows if row.into is not None]

    @property
    def left(self) -> list[Folding]:
        """The layers that stay, with the reason of each."""
        return [row for row in self.rows if row.into is None]

    def _counts(self) -> dict[str, Any]:
        return {"folded": len(self.folded), "left": len(self.left)}

    def to_dict(self) -> dict[str, Any]:
        """The report in plain Python types, ready for JSON."""
        return {
            "folded": len(self.folded),
            "left": len(self.left),
            "layers": [row._asdict() for row in self.rows],
        }

    def __rich__(self) -> Any:
        """What rich prints."""
        return self.table(
            f"fold: {len(self.folded)} batch norm layers folded, {len(self.left)} left",
            ("layer", "into", "why it stays"),
            [(row.layer, row.into or "-", row.reason) for row in self.rows],
        )


def fold(model: Any, explain: bool = False, *, check: Any = False) -> Any:
    """A copy of `model` for inference, with batch norm folded into linear layers.

    In inference a batch norm layer scales and shifts each channel,

        y = scale * x + offset
        scale  = gamma / sqrt(moving_variance + epsilon)
        offset = beta - moving_mean * scale

    so the linear layer before it can do it at no cost, `kernel * scale` and
    `bias * scale + offset`; or else the linear layer after it. The arithmetic is
    float64, the result in the dtype of the layer's weights. Outputs agree with those
    of `model` to the rounding of the dtype that the layers compute in. Under a policy
    of half precision, kernel and bias are rounded to it, where the batch norm's
    statistics, gamma and beta are float32: that shows where a mean is large against
    its deviation.

    Linear layers are Dense, EinsumDense, Conv1D/2D/3D, DepthwiseConv1D/2D,
    SeparableConv1D/2D and Conv1D/2D/3DTranspose. Before it, Embedding and layers that
    end in gamma and beta of their own (LayerNormalization, GroupNormalization, a batch
    norm that has to stay) take it in as well.

    Batch norm also passes through what only drops, moves or averages values, wherever
    that is exact: dropouts, Identity, Reshape, Flatten, Permute, cropping, upsampling,
    average pooling, maximum pooling if no scale is negative, zero padding if there is
    no offset; sums and products with constants, transposes, means and reshapes of
    `keras.ops`. Where tensors are joined before it (Concatenate, Add, Subtract,
    Average), or several layers read it, all of the layers there take their share, or
    none does.

    A layer of a class that is not Keras's is followed: its `call` is run on symbolic
    tensors, and the batch norms that it calls are folded into the layers that it calls.
    There a layer that hands its input on takes the place of the norm.

    What cannot be folded stays as it is: an activation in between, other users of a
    tensor, layers called twice or with `training=True`, a convolution after it that
    pads with zeros, a `call` that cannot be followed. `explain=True` says why, layer by
    layer.

    A residual that a batch norm is called with is added by a layer of its own first.

    A model of `quantize_aware` gets the rounded kernels that it was trained with, and
    activations that are not rounded: those are left to the exporter.

    Args:
        model: A built Functional or Sequential model, nested ones included, or a
            subclassed one whose `call` can be followed on symbolic tensors.
        explain: Whether to return a `FoldReport` too.
        check: Whether to compare what model and copy compute on a batch (without the
            rounding of `quantize_aware`): True for made-up inputs, or data as for
            `recalibrate`.

    Returns:
        The new model, or `(model, report)` with `explain=True`. Where `model` is
        compiled, it has the same loss and metrics, and a fresh optimizer. It is meant
        for inference: training it is training a model without batch norm.

    Raises:
        TypeError: `model` is not a Keras model, `explain` not a boolean.
        ValueError: It is not built, has no batch norm, is quantized, or is a subclassed
            model that cannot be followed or copied.

    Warns:
        UserWarning: The compile state, or the class of the model, cannot be carried;
            nothing could be folded, and no report was asked for.

    Reference:
        [Jacob et al., 2018](https://arxiv.org/abs/1712.05877), section 3.2.

    Example:

    >>> import keras, keras_bn
    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, use_bias=False),
    ...     keras_bn.BatchNormalization(), keras.layers.ReLU(),
    ... ])
    >>> folded, report = keras_bn.fold(model, explain=True)
    >>> [layer.__class__.__name__ for layer in folded.layers]
    ['Conv2D', 'ReLU']
    >>> len(report.folded), len(report.left)
    (1, 0)
    """
    batch_norms(model)
    explain = _settings.boolean("explain", explain)
    if is_quantize_aware(model):
        plain = without_rounding(model)
        copy, plan = _folded(plain, ChainPlan)
    else:
        plain = with_sums(model)
        copy, plan = _folded(plain, Plan)
    check_outputs(plain, copy, check)
    carry_compile(model, copy, slots=False)
    report = FoldReport(plan.foldings)
    if explain:
        return copy, report
    if not report.folded:
        warnings.warn(
            f"None of the {len(report.left)} batch normalization layers of model "
            f"'{model.name}' could be folded: the copy computes the same, no faster. "
            f"The first, '{report.left[0].layer}', stays because: "
            f"{report.left[0].reason}. `explain=True` gives the reasons of all.",
            UserWarning,
            stacklevel=2,
        )
    return copy


def _folded(model: Any, planned: type[Plan]) -> tuple[Any, Plan]:
    """The copy, and the plan that it follows."""
    opaque: dict[type, str] = {}
    while True:
        plan = planned(model, opaque)
        try:
            return rebuild(model, *_of_plan(plan)), plan
        except OutOfReach as error:
            # Without its class, what is left may still go.
            cls = base_class(error.owner)
            if cls in opaque:
                raise
            opaque[cls] = (
                f"it is called inside '{error.owner.name}' ({cls.__name__}), which "
                "cannot be copied with others in the place of its layers"
            )


def _of_plan(plan: Plan) -> tuple[Replace, Fill]:
    def replace(layer: Layer) -> Replacement | None:
        if id(layer) in plan.removed:
            activation = plan.removed[id(layer)]
            if id(layer) in plan.reached.owners:  # somebody's code calls it
                return Replacement(
                    Folded(activation, name=layer.name, dtype=layer.dtype_policy)
                )
            if activation is None:
                return Replacement(None)
            return Replacement(None, (activation_layer(layer, activation),))
        if id(layer) in plan.steps:
            return Replacement(_taking(layer, plan.activations.get(id(layer))))
        return None

    def fill(old: Layer, new: Layer) -> None:
        if id(old) in plan.removed:
            return
        if is_batch_norm(old):
            copy_batch_norm(old, new)
        taker(old).fill(new, folded_weights(old, plan.steps[id(old)]))

    return replace, fill


def _taking(layer: Layer, activation: Any) -> Layer:
    """A layer like `layer`, with all the weights that an affine needs."""
    changes = taker(layer).config(layer)
    if activation is not None:
        changes["activation"] = activation
    # The kernel that was read has the low-rank update in it.
    return made_like(layer, ("lora_rank", "lora_alpha"), **changes)
