"""Names that are not public in Keras and in the framework: there, and done without.

Whoever moves to a new version of one of them reads here what it has taken away.
"""

import ast
import importlib
import pkgutil
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from keras_bn import _keras, _private

BACKEND = keras.backend.backend()
PRIVATE = importlib.import_module(f"keras_bn.backend.{BACKEND}_private")

only = {
    name: pytest.mark.skipif(name != BACKEND, reason=f"of {name} alone")
    for name in ("tensorflow", "jax", "torch")
}


@pytest.mark.parametrize("path", sorted(_private.WITHOUT))
def test_the_name_is_there(path):
    without = _private.WITHOUT[path]
    try:
        pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{path} is gone: {without}. ({error})")


def test_every_name_is_asked_for():
    """Or nobody would read here what goes with it."""
    nodes = list(ast.walk(ast.parse(Path(PRIVATE.__file__).read_text())))
    used = {one.attr for one in nodes if isinstance(one, ast.Attribute)}
    used |= {one.value for one in nodes if isinstance(one, ast.Constant)}
    hidden = {one for one in used if re.fullmatch(r"_[a-z]\w+", str(one))}
    asked = {re.split("[.:]", path)[-1] for path in _private.WITHOUT}
    assert hidden - {"_getframe"} <= asked


@pytest.fixture(scope="module")
def objects():
    """One of each kind of Keras's objects, by the names in `_keras.USES`."""
    layer = keras.layers.Dense(1)
    sequential = keras.Sequential([keras.Input((2,)), keras.layers.Masking(), layer])
    sequential.compile("sgd", "mse")
    sequential.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
    node = layer._inbound_nodes[0]
    return {
        "layer": layer,
        "torch layer": layer,
        "variable": layer.bias,
        "sequential": sequential,
        "compiled": sequential,
        "functional": sequential._functional,
        "tensor": sequential.layers[0].output,
        "node": node,
        "arguments": node.arguments,
        "tracker": layer._tracker,
    }


@pytest.mark.parametrize("name", sorted(_keras.USES))
def test_keras_s_object_has_it(name, objects):
    use = _keras.USES[name]
    if use.of == "torch layer" and BACKEND != "torch":
        pytest.skip("of torch alone")
    _keras._of(objects[use.of], name)  # or an error that says what needs it


@pytest.mark.parametrize("name", _keras.OF_CALLS)
def test_what_copies_leave_out_is_there(name):
    known = name in vars(keras.layers.BatchNormalization())
    assert known, f"a copy would share with its model what was `{name}`"


def test_what_keras_wraps_is_known():
    own = vars(keras.layers.BatchNormalization())
    wrapped = {name for name, value in own.items() if hasattr(value, "__wrapped__")}
    assert "build" in wrapped
    new = wrapped - {*_keras.WRAPPED}
    assert not new, f"a copy would share with its model its methods {new}"


@pytest.mark.parametrize("name", _keras.RUN_BY_BATCH_NORM)
def test_what_a_batch_norm_runs_is_known(name):
    known = hasattr(keras.layers.BatchNormalization, name)
    assert known, f"a subclass that changes what was `{name}` passes for a plain one"


@pytest.mark.parametrize("name", _keras.OF_COMPILE)
def test_what_compile_leaves_is_known(name, objects):
    if name == "_jax_state" and BACKEND != "jax":
        pytest.skip("of JAX alone")
    if name == "_compiled_trainable_state" and frameworks.KERAS < (3, 15):
        pytest.skip("Keras leaves it since 3.15")
    known = hasattr(objects["compiled"], name)
    assert known, f"a copy may share with the model what was `{name}`"


def test_operations_are_known_by_the_names_of_their_classes(objects):
    x = keras.Input((2, 3))
    sum_of = keras.Function(x, keras.ops.add(x, 1.0)).operations[-1]
    assert _keras.kind(sum_of) == "ops.Add"
    assert _keras.kind(objects["layer"]) == "layers.Dense"
    assert _keras.kind(keras_bn.BatchNormalization()) == "BatchNormalization"


# What callers' names and texts tell: were one of them another, nothing would fail but
# the numbers.


def through(keep):
    """A function of a tensor that tells `keep` what is known of its call."""

    def function(x):
        keep()
        return keras.ops.sum(x * x)

    return function


@only["tensorflow"]
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_tensorflow_s_repetitions_are_seen(compiled):
    import tensorflow as tf

    seen = []
    function = tf.recompute_grad(
        through(lambda: seen.append(list(PRIVATE.transformations())))
    )

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    (tf.function(step) if compiled else step)(tf.ones((2, 3)))
    assert seen[0] == [], "a first pass is taken for a repeated one: no average moves"
    assert seen[-1][:1] == ["recompute_grad"], "moving statistics move twice"
    assert len(seen) > 1


@only["tensorflow"]
def test_tensorflow_s_vectorized_calls_are_seen():
    import tensorflow as tf

    seen = []
    function = through(lambda: seen.append(list(PRIVATE.transformations())))
    tf.vectorized_map(function, tf.ones((2, 3)))
    assert ["vectorized_map"] in [one[-1:] for one in seen], "updates are lost"


@only["jax"]
def test_jax_s_checkpoints_are_seen():
    import jax

    seen = []

    def function(x):
        seen.append(PRIVATE.of_checkpoint(x))
        return (x * x).sum()

    jax.grad(jax.checkpoint(function))(np.ones((2, 3), "float32"))
    jax.grad(function)(np.ones((2, 3), "float32"))
    assert seen == [True, False], "the error in `keras.remat` names no way out"


@only["torch"]
@pytest.mark.parametrize("reentrant", [False, True])
def test_torch_s_repetitions_are_seen(reentrant):
    import torch
    from torch.utils.checkpoint import checkpoint

    seen = []
    function = through(lambda: seen.append(PRIVATE.backward_pass() != -1))
    x = torch.ones((2, 3), requires_grad=True)
    checkpoint(function, x, use_reentrant=reentrant).backward()
    assert seen == [False, True], "moving statistics move twice"


# Where a name is gone.


@pytest.fixture
def without(monkeypatch):
    """Reloads a module as if names were gone; gives it back with all of them."""
    resolve, reloaded = pkgutil.resolve_name, []

    def reload(module, *gone):
        assert {*gone} <= {*_private.WITHOUT}, "nobody says what is lost with it"

        def resolved(path):
            if path in gone:
                raise AttributeError(path)
            return resolve(path)

        with monkeypatch.context() as patch:
            patch.setattr(pkgutil, "resolve_name", resolved)
            importlib.reload(module)
        reloaded.append(module)

    yield reload
    for module in reloaded:
        importlib.reload(module)


@pytest.fixture(scope="module")
def expected():
    return trained()


def trained():
    """What a training step gives: output, gradient, what is inferred then, weights."""
    draw = np.random.default_rng(0).normal
    x, dy = (frameworks.tensor(draw(3, 2, (8, 4)).astype("f4")) for _ in range(2))
    y, _, (dx,) = frameworks.gradients(keras_bn.ops.batch_norm_train, [x], dy)
    layer = keras_bn.BatchNormalization(momentum=0.5)
    layer(x, training=True)
    return [y, dx, *map(frameworks.numpy, (layer(x), *layer.weights))]


@pytest.mark.parametrize("path", sorted(_private.WITHOUT))
@pytest.mark.filterwarnings("ignore:.*that is installed has no:UserWarning")
def test_the_layer_trains_without_it(path, without, expected):
    without(_keras if path.startswith("keras") else PRIVATE, path)
    for one, other in zip(trained(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_lost_is_said_once(without):
    _private.WITHOUT["numpy:gone"] = "nothing is lost"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                _private.warn_of_missing("numpy:gone")
    finally:
        del _private.WITHOUT["numpy:gone"]
        _private.warn_of_missing.cache_clear()
    (one,) = caught
    assert f"numpy {np.__version__} that" in str(one.message)
    assert "no `numpy.gone`" in str(one.message)
    assert str(one.message).endswith("Without it nothing is lost.")


@only["torch"]
def test_torch_without_the_number_of_a_backward_pass(without):
    without(PRIVATE, "torch._C:_current_graph_task_id")
    _private.warn_of_missing.cache_clear()
    with pytest.warns(UserWarning, match="move twice"):
        assert PRIVATE.backward_pass() == -1


@only["tensorflow"]
def test_tensorflow_without_the_name_of_the_second_pass(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(PRIVATE, "_RECOMPUTES", "another_name")
    monkeypatch.setattr(PRIVATE, "_tells_passes_apart", False)
    layer = keras_bn.BatchNormalization()
    layer.build((None, 3))
    layer(tf.ones((2, 3)), training=True)
    before = frameworks.numpy(layer.moving_mean)
    with pytest.raises(NotImplementedError, match=r"`tf.recompute_grad`.*no_update"):
        tf.recompute_grad(lambda x: layer(x, training=True))(tf.ones((2, 3)))
    np.testing.assert_array_equal(frameworks.numpy(layer.moving_mean), before)


@only["jax"]
def test_jax_without_the_trace_of_an_array(without):
    """What it can still tell, it does: an update that no scope collects."""
    import jax

    without(PRIVATE, "jax.core:Tracer._trace")
    layer = keras_bn.BatchNormalization()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="unless they come out as a result"):
        jax.jit(lambda x: layer(x, training=True))(np.ones((2, 3), "float32"))


@only["jax"]
def test_jax_without_the_types_of_what_varies(without):
    import jax

    without(PRIVATE, "jax.core:ShapedArray.mat")
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    seen = []

    def function(x):
        seen.append(PRIVATE.varying_axes(x))
        return x

    jax.eval_shape(
        jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split), np.ones(2)
    )
    assert seen == [frozenset()]


def model():
    return keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    )


@pytest.mark.parametrize(
    "path", ["keras.src.ops.node:Node", "keras.src.utils.tracking:Tracker"]
)
def test_tools_say_what_they_cannot_do(path, without):
    without(_keras, path)
    name = path.partition(":")[2]
    with pytest.raises(RuntimeError, match=f"Keras .* has no `{name}`.*copies"):
        keras_bn.convert(model())


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("_functional", _keras.graph_of_sequential),
        ("_nodes_by_depth", _keras.nodes),
        ("_inbound_nodes", _keras.calls_of),
        ("_tracker", lambda one: _keras.replace_tracked(one, None, None)),
        ("_post_build", _keras.finish_copy),
        ("_value", _keras.tensor_of),
        ("_trainable_variables", _keras.own_variables),
        ("_run_through_graph", lambda one: _keras.run_graph(one, (), None)),
    ],
)
def test_what_is_gone_is_named(name, read):
    with pytest.raises(RuntimeError, match=f"no `Bare.{name}`.*keras_bn needs for"):
        read(Bare())


class Bare:
    """An object of Keras's in a version to come."""


def test_a_mask_without_keras_s_function(without):
    x = frameworks.tensor(np.ones((2, 3), "float32"))
    mask = np.ones((2,), bool)
    without(_keras, "keras.src.backend.common.masking:get_keras_mask")
    assert _keras.attached_mask(x) is None
    symbol = keras.KerasTensor((2, 3))
    _keras.attach_mask(symbol, mask)
    assert _keras.attached_mask(symbol) is mask
