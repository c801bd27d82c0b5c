"""A linear function whose transpose is written out: forward and reverse mode in one.

`jax.custom_vjp` knows no forward mode. `jax.custom_jvp` knows both, but JAX transposes
the tangent by itself, and then what it keeps for the backward pass and how it sums are
JAX's choice. `jax.custom_derivatives.linear_call` would settle that; it knows neither
`vmap` nor derivatives of its residuals, though. So it is a primitive, by the rules that
JAX documents for those ("JAX internals: primitives").
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from keras_bn.backend.interface import Tensor

Arrays = Sequence[Tensor]
Linear = Callable[[Any, Arrays], Arrays]


def linear(function: Linear, transpose: Linear, fixed: Any, along: Arrays) -> Arrays:
    """`function(fixed, along)`, which is linear in the list `along`, and gives a list.

    Reverse mode keeps `fixed` for `transpose(fixed, cotangents)`, and nothing else.

    Neither function may close over arrays. Both are differentiated by the rules of what
    they are made of where `fixed` has tangents: derivatives of a higher order.
    """
    leaves, tree = jax.tree.flatten(fixed)

    def flat(function: Linear) -> Callable[..., Arrays]:
        def call(*arguments: Tensor) -> Arrays:
            given = jax.tree.unflatten(tree, arguments[: len(leaves)])
            return function(given, arguments[len(leaves) :])

        return call

    return _bind(flat(function), flat(transpose), leaves, along)


def _bind(
    function: Callable[..., Arrays],
    transpose: Callable[..., Arrays],
    fixed: Arrays,
    along: Arrays,
) -> Arrays:
    forward = jax.make_jaxpr(function)(*fixed, *along)
    backward = jax.make_jaxpr(transpose)(*fixed, *forward.out_avals)
    return _linear.bind(
        *fixed, *along, forward=forward, backward=backward, fixed=len(fixed)
    )


def _evaluate(
    *arguments: Tensor, forward: ClosedJaxpr, backward: ClosedJaxpr, fixed: int
) -> Arrays:
    del backward, fixed
    return jaxpr_as_fun(forward)(*arguments)


def _types(*types: Any, forward: ClosedJaxpr, backward: ClosedJaxpr, fixed: int) -> Any:
    del types, backward, fixed
    return forward.out_avals


def _tangents(
    primals: Arrays, tangents: Sequence[Any], *, fixed: int, **parameters: Any
) -> tuple[Arrays, Arrays]:
    """The rule of products: along what it is linear in, and along `fixed`."""

    def call(*arguments: Tensor) -> Arrays:
        return _linear.bind(*arguments, fixed=fixed, **parameters)

    outputs = call(*primals)
    parts = []
    if not all(isinstance(one, ad.Zero) for one in tangents[fixed:]):
        parts.append(
            call(*primals[:fixed], *map(ad.instantiate_zeros, tangents[fixed:]))
        )
    moving = [i for i in range(fixed) if not isinstance(tangents[i], ad.Zero)]
    if moving:

        def along_moving(*values: Tensor) -> Arrays:
            arguments = list(primals)
            for i, value in zip(moving, values, strict=True):
                arguments[i] = value
            return _evaluate(*arguments, fixed=fixed, **parameters)

        _, found = jax.jvp(
            along_moving,
            [primals[i] for i in moving],
            [tangents[i] for i in moving],
        )
        parts.append(found)
    return outputs, [sum(ones[1:], ones[0]) for ones in zip(*parts, strict=True)]


def _transposed(
    cotangents: Sequence[Any],
    *arguments: Any,
    forward: ClosedJaxpr,
    backward: ClosedJaxpr,
    fixed: int,
) -> list[Any]:
    given, along = arguments[:fixed], arguments[fixed:]
    found = _linear.bind(
        *given,
        *map(ad.instantiate_zeros, cotangents),
        forward=backward,
        backward=forward,
        fixed=fixed,
    )
    # What is known of `along` is zeros, put in by `_tangents`.
    return [None] * fixed + [
        cotangent if ad.is_undefined_primal(argument) else None
        for cotangent, argument in zip(found, along, strict=True)
    ]


def _batched(
    arguments: Arrays,
    axes: Sequence[Any],
    *,
    forward: ClosedJaxpr,
    backward: ClosedJaxpr,
    fixed: int,
) -> tuple[Arrays, list[int]]:
    (size,) = {
        one.shape[axis]
        for one, axis in zip(arguments, axes, strict=True)
        if axis is not None
    }

    def first(one: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return jnp.broadcast_to(one, (size, *one.shape))
        return jnp.moveaxis(one, axis, 0)

    # All that is linear varies, so that the transpose has nothing to add up.
    along = list(map(first, arguments[fixed:], axes[fixed:]))

    def batched(function: ClosedJaxpr) -> Callable[..., Arrays]:
        linear_count = len(function.in_avals) - fixed
        return jax.vmap(jaxpr_as_fun(function), (*axes[:fixed], *[0] * linear_count))

    outputs = _bind(batched(forward), batched(backward), arguments[:fixed], along)
    return outputs, [0] * len(outputs)


_linear = Primitive("batch_norm_linear")
_linear.multiple_results = True
_linear.def_impl(_evaluate)
_linear.def_abstract_eval(_types)
ad.primitive_jvps[_linear] = _tangents
ad.primitive_transposes[_linear] = _transposed
batching.primitive_batchers[_linear] = _batched
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))
