"""The argument `replica_groups` in one process: saved, converted, refused."""

import functools

import keras
import numpy as np
import pytest

import frameworks
import keras_bn

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def norm(groups, **arguments):
    return keras_bn.BatchNormalization(
        synchronized=True, replica_groups=groups, name="norm", **arguments
    )


@pytest.mark.parametrize(
    ("groups", "saved"),
    [
        ([[0, 1], [2, 3]], [[0, 1], [2, 3]]),
        (((np.int64(1),), (0, 2)), [[1], [0, 2]]),
        ("data", ["data"]),
        (["data", "rows"], ["data", "rows"]),
    ],
)
def test_round_trip(tmp_path, groups, saved):
    model = keras.Sequential([keras.Input((3,)), norm(groups)])
    model(X, training=True)  # no engine: the groups are not read
    plain = keras_bn.BatchNormalization()
    plain(X, training=True)
    for one, other in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(frameworks.numpy(one), frameworks.numpy(other))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config()["replica_groups"] == saved
    assert loaded.layers[0].replica_groups == model.layers[0].replica_groups


def test_the_default_is_not_in_the_config():
    assert "replica_groups" not in norm(None).get_config()


def test_convert():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    ours = keras_bn.convert(model, synchronized=True, replica_groups=[[0], [1]])
    with pytest.raises(ValueError, match=r"no argument `replica_groups`.*\[\[0\], \[1"):
        keras_bn.convert(ours, to="keras")
    plain = {"synchronized": False, "replica_groups": None}
    back = keras_bn.convert(keras_bn.convert(ours, **plain), to="keras")
    assert type(back.layers[0]) is keras.layers.BatchNormalization


@pytest.mark.skipif(BACKEND != "torch", reason="process groups are PyTorch's")
def test_a_process_group_is_saved_as_its_ranks():
    import torch.distributed as dist

    with pytest.raises(ValueError, match="`replica_groups` must be a process group"):
        norm(dist.GroupMember.NON_GROUP_MEMBER)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = norm(dist.group.WORLD)
        layer(X, training=True)
        assert layer.get_config()["replica_groups"] == [[0]]
    finally:
        dist.destroy_process_group()
    with pytest.raises(ValueError, match="has not been destroyed"):
        layer.get_config()


@pytest.mark.skipif(BACKEND != "jax", reason="manual axes are JAX's")
class TestManualAxes:
    """On meshes of one device, which has axes enough."""

    def mapped(self, function, specs, checked=True):
        import jax
        from jax.sharding import AxisType

        mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        along_data = jax.sharding.PartitionSpec("data")
        return jax.shard_map(
            *(function,),
            mesh=mesh,
            in_specs=(along_data, specs),
            out_specs=along_data,
            check_vma=checked,
        )

    def call(self, x, gamma, replica_groups=None, **arguments):
        arguments |= {"synchronized": True, "replica_groups": replica_groups}
        return keras_bn.ops.batch_norm_train(x, gamma, **arguments)[0]

    def test_types_say_which_axis_splits_the_batch(self):
        import jax

        same = jax.sharding.PartitionSpec()
        gamma = np.ones(3, "float32")
        y = jax.jit(self.mapped(self.call, same))(X, gamma)
        np.testing.assert_allclose(y, self.call(X, gamma), atol=1e-6)
        with pytest.raises(ValueError, match=r"name the manual axes.*'data', 'model'"):
            self.mapped(self.call, same, checked=False)(X, gamma)

    def test_an_axis_that_may_shard_the_channels_is_refused_unless_named(self):
        import jax

        along = jax.sharding.PartitionSpec("data")
        gamma = np.ones(3, "float32")
        with pytest.raises(ValueError, match=r"gamma or beta varies along \['data'\]"):
            self.mapped(self.call, along)(X, gamma)
        named = self.mapped(lambda *given: self.call(*given, "data"), along)
        np.testing.assert_allclose(named(X, gamma), self.call(X, gamma), atol=1e-6)

    def test_along_a_named_axis_the_batch_may_be_the_same(self):
        import jax

        def slope(call):
            return lambda *given: jax.grad(lambda x: (call(x) ** 3).sum())(given[0])

        both = slope(lambda x: self.call(x, None, ("data", "model")))
        found = jax.jit(self.mapped(both, jax.sharding.PartitionSpec()))(X, X)
        expected = slope(lambda x: self.call(x, None))(X)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_gradients_reach_what_is_the_same_on_all_devices(self):
        import jax

        def slopes(x, given, groups=None):
            def loss(gamma, weights, residual):
                counts = {"weights": weights, "residual": residual}
                call = functools.partial(self.call, replica_groups=groups, **counts)
                return (call(x, gamma, activation="relu") ** 3).sum()

            return jax.grad(loss, (0, 1, 2))(*given)

        same = jax.sharding.PartitionSpec()
        given = np.full(3, 2.0, "f4"), np.linspace(1, 2, 8, dtype="f4"), np.cos(X)
        mapped = self.mapped(functools.partial(slopes, groups="data"), same)
        found, expected = (jax.jit(one)(X, given) for one in (mapped, slopes))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)

    def test_an_axis_of_vmap_is_none(self):
        import jax

        with pytest.raises(ValueError, match=r"axis of `vmap`.*\['data'\]"):
            jax.vmap(lambda x: self.call(x[None], None, "data"), axis_name="data")(X)

    def test_lists_alone_are_refused_under_a_distribution(self):
        distribution = keras.distribution.DataParallel()
        keras.distribution.set_distribution(distribution)
        try:
            layer = norm([[0], [1]])
            with pytest.raises(ValueError, match=r"None under `keras\.distribution`"):
                layer(X, training=True)
            norm("data")(X, training=True)  # which names no axis here
        finally:
            keras.distribution.set_distribution(None)
