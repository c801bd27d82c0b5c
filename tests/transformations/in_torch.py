"""How PyTorch does each transformation."""

import warnings

import keras
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import frameworks
from transformations import anywhere, functional


def _functional(transform):
    return lambda self, call: transform(torch.func, call, *call.point)


class Glue(anywhere.Glue):
    vjp = _functional(functional.vjp)
    grad_of_grad = _functional(functional.grad_of_grad)
    grad_of_grad_of_grad = _functional(functional.grad_of_grad_of_grad)
    jvp = _functional(functional.jvp)
    jvp_of_jvp = _functional(functional.jvp_of_jvp)
    jvp_of_grad = _functional(functional.jvp_of_grad)
    grad_of_jvp = _functional(functional.grad_of_jvp)
    linearize = _functional(functional.linearize)
    jacrev = _functional(functional.jacrev)
    jacfwd = _functional(functional.jacfwd)
    hessian = _functional(functional.hessian)
    vmap = _functional(functional.vmap)
    vmap_of_grad = _functional(functional.vmap_of_grad)
    grad_of_vmap = _functional(functional.grad_of_vmap)

    def backward(self, call):
        return _backward(call.function, call)

    def backward_twice(self, call):
        return {"hvp": _repeated_gradient(call, 2)}

    def backward_thrice(self, call):
        return {"third": _repeated_gradient(call, 3)}

    def forward(self, call):
        with forward_ad.dual_level():
            y = call.function(*_duals(call.point, call))
            y, pushed = forward_ad.unpack_dual(y)
        return {"value": y, "pushed": pushed}

    def forward_over_backward(self, call):
        """The backward pass of dual numbers gives dual gradients."""
        with forward_ad.dual_level():
            leaves = _leaves(call)
            duals = _duals(leaves, call)
            y = call.function(*duals)
            found = torch.autograd.grad(y, duals, call.upstream, create_graph=True)
            pairs = [forward_ad.unpack_dual(slope) for slope in found]
        return {
            "gradient": [pair.primal for pair in pairs],
            "hvp": [_or_zero(pair.tangent, pair.primal) for pair in pairs],
        }

    def backward_over_forward(self, call):
        with forward_ad.dual_level():
            leaves = _leaves(call)
            y = call.function(*_duals(leaves, call))
            pushed = forward_ad.unpack_dual(y).tangent
            found = torch.autograd.grad(
                (pushed * call.upstream).sum(), leaves, materialize_grads=True
            )
        return {"hvp": found}

    def checkpoint(self, call, reentrant):
        def again(*point):
            return checkpoint(call.function, *point, use_reentrant=reentrant)

        return _backward(again, call)

    def cond(self, call):
        if not frameworks.WHOLE_GRAPHS:
            pytest.skip("torch.cond compiles its branches whole")

        def either(*point):
            taken = point[0].sum() < torch.inf
            return torch.cond(taken, call.function, _first, point)

        return _backward(either, call)

    def compiled(self, call):
        """Compiled once, without a break of ours, for batches of any size."""
        function, leaves = _closed(call)
        torch.compiler.reset()
        whole = frameworks.WHOLE_GRAPHS
        compiled = torch.compile(
            function, backend="aot_eager", fullgraph=whole, dynamic=True
        )
        compiled(call.other_input())
        return _backward_closed(compiled, leaves, call)

    def jit_trace(self, call):
        """A module's trace, made at one batch size and used at another."""
        module = _Module(call)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer: sizes that it may fix
            traced = torch.jit.trace(module, call.other_input(), check_trace=False)
        return _backward_closed(traced, module.leaves, call)

    def export(self, call):
        batch = torch.export.Dim("batch", min=2)
        exported = torch.export.export(
            _Module(call), (call.other_input(),), dynamic_shapes=({0: batch},)
        )
        return {"value": exported.module()(call.point[0])}

    def make_fx(self, call):
        """The layer's statistics are no arguments of it, so they are no fakes."""
        tracer = make_fx(
            call.function, tracing_mode="symbolic", _allow_non_fake_inputs=True
        )
        traced = tracer(call.other_input(), *call.point[1:])
        return {"value": traced(*call.point)}

    def fake(self, call):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return _shape(call.function(*map(mode.from_tensor, call.point)))

    def fake_backward(self, call):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            leaves = [mode.from_tensor(one).requires_grad_() for one in call.point]
            y = call.function(*leaves)
            slopes = torch.autograd.grad(y, leaves, torch.ones_like(y))
        assert [slope.shape for slope in slopes] == [one.shape for one in leaves]
        return _shape(y)

    def meta(self, call):
        """All of it there, the layer too: one on the CPU has its input moved to it."""
        with keras.device("meta"):
            call = type(call)(call.scene, call.layer_class)
            return _shape(call.function(*call.point))

    def relu_on_output(self, call):
        return _backward(lambda *point: call.function(*point).relu_(), call)

    def add_to_output(self, call):
        """What is added and taken off again, in place."""

        def function(*point):
            y = call.function(*point)
            y += 1
            y -= 1
            return y

        return _backward(function, call)

    def input_changed(self, call):
        """The input changed in place between the call and the backward pass.

        For the input alone: the gradient for gamma needs the input itself.
        """
        leaf = call.point[0].detach().clone().requires_grad_()
        x = leaf * 1
        y = call.function(x, *call.point[1:])
        x += 1
        (slope,) = torch.autograd.grad(y, leaf, call.upstream)
        return {"gradient": [slope] + [None] * (len(call.point) - 1)}

    def statistics_assigned(self, call):
        """The user sets them between the call and the backward pass."""
        return _backward_closed(
            *_closed(call), call, lambda: _assign_statistics(call.layer)
        )

    def trained_in_between(self, call):
        """A call in inference, one in training, then the backward pass of both."""
        again = call.point[0].detach().clone().requires_grad_()
        return _backward_closed(
            *_closed(call), call, lambda: call.of_layer(again, training=True)
        )

    def rnn(self, call):
        rnn = anywhere.in_rnn(call)
        _, leaves = _closed(call)
        found = _backward_closed(
            lambda x: rnn(anywhere.twice(x), training=call.scene.training), leaves, call
        )
        return {**found, "moving_mean": call.layer.moving_mean.value}

    def stateful_vmap(self, call):
        torch.func.vmap(call.of_layer)(torch.stack([call.point[0]] * 2))


class _Module(torch.nn.Module):
    """The call as a module of the input alone."""

    def __init__(self, call):
        super().__init__()
        self.layer = call.layer
        self.function, self.leaves = _closed(call)
        if call.layer is None:  # what an export keeps as a constant learns nothing
            self.function = lambda x: call.function(x, *call.point[1:])

    def forward(self, x):
        return self.function(x)


def _closed(call):
    """The call as a function of the input, and the parameters that it closes over.

    The layer is called as it is, not by `stateless_call`.
    """
    if call.scene.by == "layer":
        return call.of_layer, [one.value for one in call.layer.trainable_variables]
    _, *leaves = _leaves(call)
    return lambda x: call.function(x, *leaves), leaves


def _shape(y):
    return {"shape": tuple(y.shape), "dtype": str(y.dtype).removeprefix("torch.")}


def _first(*point):
    return point[0].clone()


def _leaves(call):
    return [one.detach().clone().requires_grad_() for one in call.point]


def _duals(point, call):
    pairs = zip(point, call.tangent, strict=True)
    return [forward_ad.make_dual(one, tangent) for one, tangent in pairs]


def _or_zero(tangent, primal):
    return torch.zeros_like(primal) if tangent is None else tangent


def _backward(function, call):
    leaves = _leaves(call)
    return _backward_from(function(*leaves), leaves, call)


def _backward_closed(function, leaves, call, in_between=lambda: None):
    x = call.point[0].detach().clone().requires_grad_()
    return _backward_from(function(x), [x, *leaves], call, in_between)


def _backward_from(y, leaves, call, in_between=lambda: None):
    value = y.detach().clone()
    in_between()
    # Not `autograd.grad`, of which checkpointing knows nothing.
    y.backward(call.upstream)
    return {"value": value, "gradient": [leaf.grad for leaf in leaves]}


def _repeated_gradient(call, order):
    leaves = _leaves(call)
    y = call.function(*leaves)
    slopes = torch.autograd.grad(y, leaves, call.upstream, create_graph=True)
    for _ in range(order - 1):
        along = sum(
            (slope * one).sum() for slope, one in zip(slopes, call.tangent, strict=True)
        )
        slopes = torch.autograd.grad(
            along, leaves, create_graph=True, materialize_grads=True
        )
    return slopes


def _assign_statistics(layer):
    for variable in layer.non_trainable_variables:
        variable.assign(variable.value * 2 + 1)
