"""How JAX does each transformation. All is compiled whole: op by op takes longer."""

import functools

import jax
import jax.export
import jax.numpy as jnp

from transformations import anywhere, functional


def _compiled(transform):
    """As a method of a call; the transformation is a function of the point."""

    def method(self, call, **kwargs):
        pure = functools.partial(transform, self, call, **kwargs)
        return jax.jit(pure)(*call.point)

    return method


def _functional(transform):
    return _compiled(lambda self, call, *point: transform(jax, call, *point))


class Glue(anywhere.Glue):
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

    def vjp(self, call):
        """Where ranks are not promoted, which everything must be able to do without."""
        with jax.numpy_rank_promotion("raise"):
            return _functional(functional.vjp)(self, call)

    @_compiled
    def checkpoint(self, call, *point):
        return _pulled_back(jax.checkpoint(call.function), call, *point)

    @_compiled
    def cond(self, call, *point):
        def either(*point):
            taken = point[0].sum() < jnp.inf
            return jax.lax.cond(taken, call.function, lambda *point: point[0], *point)

        return _pulled_back(either, call, *point)

    @_compiled
    def scan(self, call, *point):
        """A step for each third of the cotangent, so that the sum is the call's."""

        def added_up(*point):
            def step(total, share):
                return total + share * call.function(*point), None

            shares = jnp.array([0.5, 0.25, 0.25])
            return jax.lax.scan(step, jnp.zeros_like(point[0]), shares)[0]

        return _pulled_back(added_up, call, *point)

    @_compiled
    def while_loop(self, call, *point):
        """Forward alone: JAX has no reverse mode through a loop of unknown length."""

        def step(carry):
            i, total = carry
            return i + 1, total + call.function(*point) / 2

        start = (0, jnp.zeros_like(point[0]))
        return {"value": jax.lax.while_loop(lambda c: c[0] < 2, step, start)[1]}

    def export(self, call):
        """Exported, with its gradient, for a batch of any size."""
        (batch,) = jax.export.symbolic_shape("batch")
        x, *rest = (jax.ShapeDtypeStruct(one.shape, one.dtype) for one in call.point)
        x = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
        exported = jax.export.export(jax.jit(call.function))(x, *rest)
        reread = jax.export.deserialize(exported.serialize(vjp_order=1))
        return _pulled_back(reread.call, call, *call.point)

    def abstract(self, call):
        y = jax.eval_shape(call.function, *call.point)
        return {"shape": y.shape, "dtype": str(y.dtype)}

    @_compiled
    def rnn(self, call, *point):
        rnn = anywhere.in_rnn(call)
        fixed = [one.value for one in rnn.non_trainable_variables]

        def last(x, *parameters):
            sequence, training = anywhere.twice(x), call.scene.training
            y, state = rnn.stateless_call(
                parameters, fixed, sequence, training=training
            )
            return y, state[0]

        y, pull_back, moving_mean = jax.vjp(last, *point, has_aux=True)
        gradient = pull_back(call.upstream)
        return {"value": y, "gradient": gradient, "moving_mean": moving_mean}

    def stateful_vmap(self, call):
        jax.vmap(call.of_layer)(jnp.stack([call.point[0]] * 2))


def _pulled_back(function, call, *point):
    y, pull_back = jax.vjp(function, *point)
    return {"value": y, "gradient": pull_back(call.upstream)}
