"""The steps that the benchmark times compute what they are said to, on each backend."""

import types

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
import oracle
from keras_bn.backend import timing

BACKEND = keras.backend.backend()
TIMING = timing()
FRAMEWORK = __import__(BACKEND)
# What `torch.compile` takes seconds for is the same step.
WAYS = [way for way in TIMING.WAYS if way != "compiled"]
SHAPE, MOMENTUM, EPSILON = (4, 3, 5, 2), 0.75, 1e-2
X, DY = (np.random.default_rng(i).normal(2, 3, SHAPE).astype("float32") for i in (0, 1))
GAMMA = np.array([0.5, 3.0], "float32")
# The inputs of a network, and which class they are of.
ROWS, LABELS = X[:, 0, 0], np.array([0, 2, 1, 1], "int32")

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")


def tensors(*arrays):
    return [frameworks.tensor(one) for one in arrays]


def numbers(result):
    """All tensors in what a step returns."""
    return [frameworks.numpy(one) for one in keras.tree.flatten(result)]


def assert_among(found, *expected):
    """Each of the expected is there, whatever PyTorch calls its axes."""
    found = [*found, *(np.moveaxis(one, 1, -1) for one in found if one.ndim == 4)]
    found = [np.squeeze(one) for one in found]
    for wanted in map(np.squeeze, expected):
        alike = [one for one in found if one.shape == wanted.shape]
        assert any(np.allclose(one, wanted, rtol=1e-4, atol=1e-4) for one in alike)


def norm():
    layer = keras_bn.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)
    layer.build(SHAPE)
    layer.gamma.assign(GAMMA)
    return layer


def moved(momentum):
    """The moving statistics after one step on X."""
    _, mean, variance, _ = oracle.forward(X)
    return mean * (1 - momentum), momentum + variance * (1 - momentum)


@pytest.mark.parametrize("way", WAYS)
def test_a_training_step_is_forward_backward_and_the_moving_statistics(way):
    layer = norm()
    found = numbers(TIMING.training(layer, *tensors(X, DY), way)())
    found += [frameworks.numpy(one.value) for one in layer.non_trainable_variables]
    expected = oracle.forward(X, GAMMA, epsilon=EPSILON).y
    gradients = oracle.backward(X, DY, GAMMA, epsilon=EPSILON)
    assert_among(found, expected, *gradients, *moved(MOMENTUM))


@pytest.mark.parametrize("way", WAYS)
def test_an_inference_step_is_the_output_by_moving_statistics(way):
    (found,) = numbers(TIMING.inference(norm(), *tensors(X), way)())
    assert_among([found], oracle.inference(X, 0.0, 1.0, GAMMA, epsilon=EPSILON))


@pytest.mark.parametrize("way", WAYS)
def test_a_network_s_step_is_the_gradients_of_the_mean_cross_entropy(way):
    model = keras.Sequential(
        [keras.Input((2,)), keras_bn.BatchNormalization(), keras.layers.Dense(3)]
    )
    kernel, bias = np.arange(6.0).reshape(2, 3) - 2, np.array([0.5, 0.0, -1.0])
    model.layers[1].set_weights([kernel, bias])
    found = numbers(TIMING.model_training(model, *tensors(ROWS, LABELS), way)())
    hidden = oracle.forward(ROWS).y
    likelihoods = np.exp(hidden @ kernel + bias)
    likelihoods /= likelihoods.sum(1, keepdims=True)
    dy = (likelihoods - np.eye(3)[LABELS]) / len(LABELS)
    _, *slopes = oracle.backward(ROWS, dy @ kernel.T)
    assert_among(found, *slopes, hidden.T @ dy, dy.sum(0))


def test_a_peer_is_a_batch_norm_with_the_same_arguments():
    x, dy = tensors(X, DY)
    *_, peer = TIMING.native(x, dy, -1, MOMENTUM, EPSILON, WAYS[0])
    expected = oracle.inference(X, 0.0, 1.0, epsilon=EPSILON)
    assert_among(numbers(peer.inference()()), expected)
    expected = oracle.forward(X, epsilon=EPSILON).y
    gradients = oracle.backward(X, DY, epsilon=EPSILON)
    assert_among(numbers(peer.training()()), expected, *gradients)


def test_yardsticks_read_and_write_what_they_say():
    x, dy = tensors(X, DY)
    assert_among(numbers(TIMING.copy(x)()), X + 1)
    assert_among(numbers(TIMING.least(x, dy)()), X.sum(), X + 1, (X * DY).sum(), X + DY)


def test_a_result_is_waited_for_and_handed_on():
    (x,) = tensors(X)
    assert TIMING.wait(x) is x


@pytest.mark.skipif(frameworks.platform() != "cpu", reason="it has a name and a cache")
def test_a_cpu_has_no_name_and_its_cache_is_left_alone():
    version = FRAMEWORK.__version__
    assert TIMING.versions() == {"backend": BACKEND, BACKEND: version}
    assert TIMING.flush() is None


@pytest.fixture
def variables(monkeypatch):
    """The variables that a benchmark makes of TensorFlow's."""
    kept = []

    def variable(*arguments):
        kept.append(FRAMEWORK.Variable(*arguments))
        return kept[-1]

    names = {name: getattr(FRAMEWORK, name) for name in dir(FRAMEWORK)}
    made = types.SimpleNamespace(**{**names, "Variable": variable})
    monkeypatch.setattr(TIMING, "tf", made)
    return kept


@on_tensorflow
def test_a_peer_moves_its_statistics_as_the_layer_does(variables):
    rows = (one.reshape(-1, SHAPE[-1]) for one in (X, DY))
    (peer,) = TIMING.native(*tensors(*rows), 1, MOMENTUM, EPSILON, "graph")
    peer.training()()
    # Of as many values as the fused operator divides by, one less.
    mean, variance = moved(MOMENTUM)
    values = X.size // SHAPE[-1]
    variance = MOMENTUM + (variance - MOMENTUM) * values / (values - 1)
    assert_among([one.numpy() for one in variables], mean, variance)


@on_tensorflow
@pytest.mark.parametrize(
    ("dtype", "axis", "way"),
    [("float64", -1, "graph"), ("float32", 1, "graph"), ("float32", -1, "xla")],
)
def test_the_fused_operator_is_no_peer_where_it_does_not_serve(dtype, axis, way):
    x = frameworks.tensor(X, dtype)
    assert not list(TIMING.native(x, x, axis, MOMENTUM, EPSILON, way))


class Asking(keras.layers.Layer):
    """Asks what it is called for, and how it is compiled."""

    def build(self, shape):
        self.scale = self.add_weight((), "ones")

    def call(self, x, training=None):
        from keras_bn.backend.tensorflow_context import compiled_by_xla

        self.heard = training, FRAMEWORK.executing_eagerly(), compiled_by_xla()
        return x * self.scale


@on_tensorflow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["training", "inference", "model_training"])
def test_a_step_is_a_graph_and_compiled_by_xla_on_the_way_of_that_name(step, way):
    layer = Asking()
    layer.build(ROWS.shape)
    given = {"training": (ROWS, ROWS), "inference": (ROWS,)}
    given["model_training"] = ROWS, LABELS // 2
    getattr(TIMING, step)(layer, *tensors(*given[step]), way)()
    assert layer.heard == (step != "inference", False, way == "xla")


@on_tensorflow
def test_a_copy_is_a_graph():
    class Heard:
        dtype = FRAMEWORK.float32

        def __add__(self, other):
            return FRAMEWORK.constant(FRAMEWORK.executing_eagerly())

    assert not TIMING.copy(Heard())()


@on_tensorflow
def test_a_gpu_is_named_waited_for_and_its_cache_overwritten(variables, monkeypatch):
    tf = FRAMEWORK
    called = []
    devices = [types.SimpleNamespace(name=name) for name in ("first", "second")]
    details = {"device_name": "H100"}
    monkeypatch.setattr(TIMING, "_device", lambda: "GPU:1")
    monkeypatch.setattr(
        tf.config, "list_physical_devices", {"GPU": devices}.__getitem__
    )
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda one: details if one is devices[1] else {},
    )
    assert TIMING.versions()["device"] == "H100"
    details.clear()
    assert TIMING.versions()["device"] == "second"
    monkeypatch.setattr(
        tf.test.experimental, "sync_devices", lambda: called.append("sync")
    )
    TIMING.wait(None)
    assert called == ["sync"]
    monkeypatch.setattr(TIMING, "_FLUSHED", 64)
    TIMING.flush()()
    (memory,) = variables
    assert memory.dtype.is_floating
    assert memory.dtype.size * memory.shape.num_elements() == 64
    np.testing.assert_array_equal(memory, np.ones(memory.shape))
