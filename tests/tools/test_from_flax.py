"""`from_flax`: outputs are those of linen and nnx; settings are read or asked for."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, numpy
from slow import slow

L = keras.layers
# What is taken over are NumPy arrays, on every backend, as from Haiku, which shares all
# but the names and has a test there.
pytestmark = slow("JAX and Flax have to be imported", but_on="jax")


def net():
    """A convolution, one of groups, norms, and a dense layer at the end."""
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            norm = {"use_running_average": True, "epsilon": 1e-2}
            x = linen.BatchNorm(**norm, use_scale=False)(linen.Conv(4, (3, 2))(x))
            x = linen.Conv(8, (3, 3), feature_group_count=4, use_bias=False)(x)
            x = linen.relu(linen.BatchNorm(**norm)(x))
            return linen.Dense(5)(x.reshape(len(x), -1))

    return Net()


def _keras(**more):
    layers = [
        L.Conv2D(4, (3, 2), padding="same", name="Conv_0"),
        L.BatchNormalization(name="BatchNorm_0", **more),
        L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="Conv_1"),
        keras_bn.BatchNormalization(name="BatchNorm_1", **more),
        L.ReLU(),
        L.Flatten(),
        L.Dense(5, name="head"),
    ]
    return keras.Sequential([keras.Input((5, 4, 3)), *layers])


def _randomized(variables):
    """No ones and zeros left."""
    import jax

    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    leaves = [rng.uniform(0.5, 1.5, one.shape).astype("float32") for one in leaves]
    return jax.tree.unflatten(tree, leaves)


def test_linen():
    import jax

    x = images(2, 5, 4, 3)
    variables = _randomized(jax.eval_shape(net().init, jax.random.key(0), x))
    expected = jax.jit(net().apply)(variables, x)
    model = _keras()
    matching = keras_bn.tools.match_flax(model, variables, layers="norms")
    assert matching.mapping == {name: name for name in ("BatchNorm_0", "BatchNorm_1")}
    ours = keras_bn.from_flax(
        model, variables, {"head": "Dense_0"}, layers="all", epsilon=1e-2, momentum=0.8
    )
    np.testing.assert_allclose(ours.predict(x, verbose=0), expected, rtol=1e-4)
    assert ours.get_layer("BatchNorm_0").momentum == 0.8


@pytest.fixture(scope="module")
def module():
    """Norms in a list, so that there are numbers in paths; trained by a batch."""
    from flax import nnx

    class Module(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norms = nnx.List(
                [
                    nnx.BatchNorm(4, epsilon=10.0**-i, momentum=0.5, rngs=rngs)
                    for i in (1, 2)
                ]
            )

        def __call__(self, x):
            for norm in self.norms:
                x = norm(self.dense(x) if norm is self.norms[0] else x)
            return x

    module = Module()
    module(images(32, 3) * 2 + 1)
    module.eval()
    return module


def _dense(**more):
    norms = [L.BatchNormalization(name=f"norms_{i}", **more) for i in (0, 1)]
    return keras.Sequential([keras.Input((3,)), L.Dense(4, name="dense"), *norms])


def test_an_nnx_module_brings_its_own_settings(module):
    ours = keras_bn.from_flax(_dense(), module, layers="all")
    x = images(4, 3)
    np.testing.assert_allclose(numpy(ours(x)), module(x), rtol=1e-4, atol=1e-5)
    assert [norm.epsilon for norm in ours.layers[1:]] == [1e-1, 1e-2]
    assert [norm.momentum for norm in ours.layers[1:]] == [0.5, 0.5]


def test_an_nnx_state(module):
    from flax import nnx

    ours = keras_bn.from_flax(_dense(), nnx.state(module), epsilon=1e-5)
    mean = numpy(ours.layers[1].moving_mean)
    np.testing.assert_array_equal(mean, module.norms[0].mean[...])
    with pytest.raises(ValueError, match="`epsilon` must be that of the Flax layers"):
        keras_bn.from_flax(_dense(), nnx.state(module))


@pytest.mark.parametrize("momentum", [-0.1, 0, 1, 1.1])
def test_momentum_is_what_is_kept(module, momentum):
    from flax import nnx

    settings = {"epsilon": 1e-5, "momentum": momentum}
    if 0 <= momentum <= 1:
        ours = keras_bn.from_flax(_dense(), nnx.state(module), **settings)
        assert [norm.momentum for norm in ours.layers[1:]] == [momentum] * 2
        return
    with pytest.raises(ValueError, match=r"`momentum` must be .*\[0, 1\].*kept"):
        keras_bn.from_flax(_dense(), nnx.state(module), **settings)


def test_not_of_flax():
    with pytest.raises(TypeError, match="`variables` must be the variables of a Flax"):
        keras_bn.from_flax(_dense(), [1, 2])
