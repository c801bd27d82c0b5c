"""Transformations that Keras itself does, the same on every backend."""

import keras


class Glue:
    def symbolic(self, call):
        """Keras's symbolic tensors, of a batch that is not known."""
        x = keras.Input(call.scene.shape[1:])
        y = call.of_layer(x)
        assert y.shape[0] is None
        return {"shape": (call.scene.shape[0], *y.shape[1:]), "dtype": y.dtype}


def in_rnn(call):
    """`keras.layers.RNN` of a cell that has the call in it, not unrolled.

    The input comes at both time steps; the last output is the call's.
    """
    rnn = keras.layers.RNN(_Cell(call))
    rnn.build((call.scene.shape[0], 2, call.scene.shape[1]))
    return rnn


def twice(x):
    """The sequence for `in_rnn`."""
    return keras.ops.stack([x, x], axis=1)


class _Cell(keras.layers.Layer):
    def __init__(self, call):
        super().__init__()
        self.normalize = call.layer
        self.state_size = self.output_size = call.scene.shape[-1]

    def build(self, shape):
        pass

    def call(self, inputs, states, training=False):
        y = self.normalize(inputs, training=training)
        return y, [y]
