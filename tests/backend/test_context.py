"""What each framework says of the running call: its engine, and what it refuses."""

import types

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from keras_bn.backend import groups

BACKEND = keras.backend.backend()


def _under_parameter_servers(monkeypatch):
    import tensorflow as tf

    # Without a cluster there is no real one.
    strategy = object.__new__(tf.distribute.ParameterServerStrategy)
    context = types.SimpleNamespace(strategy=strategy, num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: context)
    monkeypatch.setattr(tf.distribute, "has_strategy", lambda: True)


def _in_a_group_of_gpus(monkeypatch):
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")


ENGINES = {
    "tensorflow": (_under_parameter_servers, "tf.distribute's ParameterServerStrategy"),
    "torch": (_in_a_group_of_gpus, "inputs on 'cpu' and a group with 'cuda:nccl'"),
}


@pytest.mark.skipif(BACKEND not in ENGINES, reason="every engine of JAX's serves it")
@pytest.mark.filterwarnings("ignore:.*outside DistributedDataParallel:UserWarning")
def test_an_engine_that_cannot_serve_is_named(monkeypatch):
    prepare, match = ENGINES[BACKEND]
    layer = keras_bn.BatchNormalization(synchronized=True)
    layer.build((None, 3))
    before = [frameworks.numpy(weight).copy() for weight in layer.weights]
    prepare(monkeypatch)
    with pytest.raises(ValueError, match=f"(?s)`synchronized` must be False.*{match}"):
        layer(np.ones((4, 3), "float32"), training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(frameworks.numpy(weight), value)


def test_a_replica_that_is_in_no_group_is_told():
    told = "of which replica 2, the one that runs, is in none, without replica 2$"
    with pytest.raises(ValueError, match=told):
        groups.require_partition(((0, 1),), range(3), this=2)


def test_without_an_engine_there_are_no_replicas():
    assert keras_bn.backend.replicas() is None


def test_without_an_engine_synchronized_changes_nothing():
    x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    results = []
    for synchronized in (False, True):
        layer = keras_bn.BatchNormalization(synchronized=synchronized)
        y = layer(x, training=True)
        results.append([frameworks.numpy(one) for one in (y, *layer.weights)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_plain_call_is_no_repetition():
    x = frameworks.tensor(np.ones((2, 3), "float32"))
    assert not keras_bn.backend.recomputing(x, x)


@pytest.mark.skipif(BACKEND != "jax", reason="the arrays are JAX's")
@pytest.mark.parametrize(
    ("platforms", "addressable", "readable"),
    [
        (["cpu", "cpu"], True, True),
        (["gpu", "cpu"], True, False),
        (["cpu", "cpu"], False, False),
    ],
)
def test_values_are_looked_at_on_cpus_of_this_process(platforms, addressable, readable):
    devices = [types.SimpleNamespace(platform=name) for name in platforms]
    x = types.SimpleNamespace(is_fully_addressable=addressable, devices=lambda: devices)
    assert keras_bn.backend.readable(x) == readable


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others' are arrays or tracers")
def test_what_tensorflow_must_wait_for_or_has_only_traced_is_not_looked_at():
    import tensorflow as tf

    rows = tf.RaggedTensor.from_row_lengths(tf.ones((3, 2)), [1, 2])
    on_gpu = types.SimpleNamespace(
        numpy=rows.numpy, device="/job:localhost/device:GPU:0"
    )
    readable = keras_bn.backend.readable
    assert [readable(one) for one in (tf.ones(3), rows, on_gpu)] == [True, True, False]
    found = []

    @tf.function
    def traced(x):
        with tf.device("/device:CPU:0"):
            found.append(readable(x + 1))

    traced(tf.ones(3))
    assert found == [False]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it looks among the callers")
def test_callers_that_are_called_as_those_of_tensorflow_are_not_taken_for_them():
    layer, x = keras_bn.BatchNormalization(momentum=0.0), np.ones((4, 3), "float32")

    def inner_recompute_grad():
        layer(x, training=True)

    def _pfor_impl():
        inner_recompute_grad()

    _pfor_impl()
    np.testing.assert_array_equal(layer.moving_mean, np.ones(3))


@pytest.mark.skipif(BACKEND != "torch", reason="a transformation of PyTorch's")
def test_a_functional_call_is_what_it_is_of_keras_s_layer():
    """Without processes nobody asks whose weights a module has just now."""
    import torch

    x, results = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), []
    for kind in (keras.layers.BatchNormalization, keras_bn.BatchNormalization):
        layer = kind(name="norm")
        layer.build(x.shape)
        others = {name: 2 * one.detach() for name, one in layer.named_parameters()}
        results.append(
            torch.func.functional_call(layer, others, (x,), {"training": True})
        )
    torch.testing.assert_close(*results)


@pytest.mark.skipif(BACKEND != "torch", reason="others move a tensor by themselves")
@pytest.mark.parametrize("alone", [True, False])
def test_where_a_tensor_lies_is_seen(alone, monkeypatch):
    """Where there is no device but the CPU, what is there is where all weights are."""
    import torch

    from keras_bn.backend import torch_context

    monkeypatch.setattr(torch_context, "_CPU_ALONE", alone)
    tensors = [torch.zeros(2, device=one) for one in ("cpu", "meta")]
    same = [
        keras_bn.backend.same_device(x, types.SimpleNamespace(value=weight))
        for x in tensors
        for weight in tensors
    ]
    assert same == [True, alone, False, True]
