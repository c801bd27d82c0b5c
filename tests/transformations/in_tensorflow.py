"""How TensorFlow does each transformation."""

import tensorflow as tf

from transformations import anywhere


class Glue(anywhere.Glue):
    def backward(self, call):
        return _backward(call.function, call)

    def backward_twice(self, call):
        return {"hvp": _repeated_gradient(call, 2)}

    def backward_thrice(self, call):
        return {"third": _repeated_gradient(call, 3)}

    def forward(self, call):
        with _accumulator(call) as accumulator:
            y = call.function(*call.point)
        return {"value": y, "pushed": accumulator.jvp(y)}

    def forward_of_forward(self, call):
        with _accumulator(call) as outer:
            with _accumulator(call) as inner:
                y = call.function(*call.point)
            pushed = inner.jvp(y)
        return {"pushed": pushed, "pushed_twice": outer.jvp(pushed)}

    def forward_over_backward(self, call):
        with _accumulator(call) as accumulator:
            found = _backward(call.function, call)["gradient"]
        zero = tf.UnconnectedGradients.ZERO
        return {
            "gradient": found,
            "hvp": [accumulator.jvp(slope, zero) for slope in found],
        }

    def backward_over_forward(self, call):
        with tf.GradientTape() as tape:
            tape.watch(call.point)
            with _accumulator(call) as accumulator:
                y = call.function(*call.point)
            total = tf.reduce_sum(accumulator.jvp(y) * call.upstream)
        return {"hvp": _gradient(tape, total, call)}

    def jacobian(self, call):
        with tf.GradientTape() as tape:
            tape.watch(call.point)
            y = call.function(*call.point)
        return {"pushed": _times(tape.jacobian(y, call.point), call)}

    def hessian(self, call):
        with tf.GradientTape() as outer:
            outer.watch(call.point)
            found = _backward(call.function, call)["gradient"]
            flat = tf.concat([tf.reshape(slope, (-1,)) for slope in found], 0)
        blocks = outer.jacobian(
            flat, call.point, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        flat = _times(blocks, call)
        sizes = [tf.size(one) for one in call.point]
        parts = zip(tf.split(flat, sizes), call.point, strict=True)
        return {"hvp": [tf.reshape(part, one.shape) for part, one in parts]}

    def vmap(self, call):
        return {"value": tf.vectorized_map(*_mapped(call.function, call))}

    def vmap_of_grad(self, call):
        def gradient(*point):
            with tf.GradientTape() as tape:
                tape.watch(point)
                y = call.function(*point)
            return tape.gradient(y, point, output_gradients=call.upstream)

        return {"gradient": tf.vectorized_map(*_mapped(gradient, call))}

    def stateful_vmap(self, call):
        tf.vectorized_map(call.of_layer, tf.stack([call.point[0]] * 2))

    def recompute_grad(self, call):
        return _backward(tf.recompute_grad(call.function), call)

    def cond(self, call):
        @tf.function
        def either(*point):
            taken = tf.reduce_sum(point[0]) < float("inf")
            return tf.cond(
                taken, lambda: call.function(*point), lambda: tf.identity(point[0])
            )

        return _backward(either, call)

    def while_loop(self, call):
        """Half of the output, twice."""

        @tf.function
        def added_up(*point):
            def step(i, total):
                return i + 1, total + call.function(*point) / 2

            start = (0, tf.zeros_like(point[0]))
            return tf.while_loop(lambda i, total: i < 2, step, start)[1]

        return _backward(added_up, call)

    def scan(self, call):
        @tf.function
        def added_up(*point):
            def step(total, share):
                return total + share * call.function(*point)

            shares = tf.constant([0.5, 0.25, 0.25])
            return tf.scan(step, shares, tf.zeros_like(point[0]))[-1]

        return _backward(added_up, call)

    def compiled(self, call, unknown, jit_compile=None):
        """Traced once, for sizes that are not known: the batch, or all of them."""
        x, *rest = call.point
        known = {"batch": x.shape[1:], "all": [None] * (x.ndim - 1)}[unknown]
        signature = [tf.TensorSpec([None, *known])]
        signature += [tf.TensorSpec(one.shape) for one in rest]
        compiled = tf.function(
            call.function, input_signature=signature, jit_compile=jit_compile
        )
        compiled(call.other_input(), *rest)
        return _backward(compiled, call)

    def layer_compiled(self, call, unknown):
        """The layer itself, which is built and knows its channels."""
        x = call.point[0]
        known = {"batch": x.shape[1:], "all": [None] * (x.ndim - 1)}[unknown]
        signature = [tf.TensorSpec([None, *known])]
        compiled = tf.function(call.of_layer, input_signature=signature)
        compiled(call.other_input())
        return _backward_of_layer(compiled, call, lambda x: None)

    def statistics_assigned(self, call):
        """The user sets them between the call and the backward pass."""
        return _backward_of_layer(
            call.of_layer, call, lambda x: _assign_statistics(call.layer)
        )

    def trained_in_between(self, call):
        """A call in inference, one in training, then the backward pass of both."""
        return _backward_of_layer(
            call.of_layer, call, lambda x: call.of_layer(x, training=True)
        )

    def rnn(self, call):
        rnn = anywhere.in_rnn(call)

        @tf.function
        def in_loop(x):
            return rnn(anywhere.twice(x), training=call.scene.training)

        found = _backward_of_layer(in_loop, call, lambda x: None)
        return {**found, "moving_mean": call.layer.moving_mean.value}


def _accumulator(call):
    return tf.autodiff.ForwardAccumulator(call.point, call.tangent)


def _gradient(tape, y, call, upstream=None):
    return tape.gradient(
        y,
        call.point,
        output_gradients=upstream,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


def _backward(function, call):
    with tf.GradientTape() as tape:
        tape.watch(call.point)
        y = function(*call.point)
    return {"value": y, "gradient": _gradient(tape, y, call, call.upstream)}


def _backward_of_layer(function, call, in_between):
    x = call.point[0]
    leaves = [x, *(one.value for one in call.layer.trainable_variables)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        in_between(x)
    found = tape.gradient(y, leaves, output_gradients=call.upstream)
    return {"value": y, "gradient": found}


def _repeated_gradient(call, order):
    if order == 1:
        return _backward(call.function, call)["gradient"]
    with tf.GradientTape() as tape:
        tape.watch(call.point)
        slopes = _repeated_gradient(call, order - 1)
        along = sum(
            tf.reduce_sum(slope * one)
            for slope, one in zip(slopes, call.tangent, strict=True)
        )
    return _gradient(tape, along, call)


def _mapped(function, call):
    """A function of what is stacked, and that."""
    stacked = [i for i, axis in enumerate(call.in_axes) if axis == 0]

    def of_stacked(parts):
        point = list(call.point)
        for i, part in zip(stacked, parts, strict=True):
            point[i] = part
        return function(*point)

    return of_stacked, [call.point[i] for i in stacked]


def _times(jacobian, call):
    """A row of blocks of a Jacobian, times the tangent, added up."""
    return sum(
        tf.tensordot(block, one, one.ndim)
        for block, one in zip(jacobian, call.tangent, strict=True)
    )


def _assign_statistics(layer):
    for variable in layer.non_trainable_variables:
        variable.assign(variable.value * 2 + 1)
