"""Bad input: a clear error at once, and nothing half done.

Each row of the tables: what is done, the error, and a pattern of its message, which
names the argument, what was expected and what came.
"""

import keras
import numpy as np
import pytest

import frameworks
import keras_bn
from keras_bn.ops import (
    batch_norm_inference,
    batch_norm_train,
    moving_average,
    renorm_correction,
)

BACKEND = keras.backend.backend()
NAN, INF = float("nan"), float("inf")


def random(*shape):
    return np.random.default_rng(0).normal(3, 1, shape).astype("float32")


def clip(limits):
    return {"renorm": True, "renorm_clipping": limits}


MOMENTUM = r"must be a number in \[0, 1\].*Received: {}="
EPSILON = "`epsilon` must be a finite number greater than 0.*Received: epsilon="
AXIS = "`axis` must be an integer or a list or tuple of integers.*Received: axis="

CONSTRUCTOR = {
    "axis float": ({"axis": 1.0}, TypeError, AXIS + "1.0"),
    "axis string": ({"axis": "1"}, TypeError, AXIS + "'1'"),
    "axis None": ({"axis": None}, TypeError, AXIS + "None"),
    "axis True": ({"axis": True}, TypeError, AXIS + "True"),
    "axis list of booleans": ({"axis": [True]}, TypeError, AXIS),
    "axis set": ({"axis": {1}}, TypeError, AXIS + "{1}"),
    "axis list of floats": ({"axis": [1.0]}, TypeError, AXIS + r"\[1.0\]"),
    "axis empty": ({"axis": []}, ValueError, r"`axis` must name.*Received: axis=\(\)"),
    "axis twice": ({"axis": (1, 1)}, ValueError, r"`axis` .* twice.*axis=\(1, 1\)"),
    **{
        f"{name} {value!r}": ({name: value}, error, MOMENTUM.format(name))
        for name in ("momentum", "renorm_momentum")
        for value, error in (
            (-0.1, ValueError),
            (1.1, ValueError),
            (NAN, ValueError),
            ("0.9", TypeError),
            (None, TypeError),
            ([0.9], TypeError),
            (1j, TypeError),
            (True, TypeError),
            (np.bool_(False), TypeError),
        )
        if (name, value) != ("momentum", None)  # the plain average
    },
    **{
        f"epsilon {value!r}": ({"epsilon": value}, error, EPSILON)
        for value, error in (
            (0, ValueError),
            (-1e-3, ValueError),
            (NAN, ValueError),
            (INF, ValueError),
            ("1e-3", TypeError),
            (None, TypeError),
            (np.array([1e-3, 1e-3]), TypeError),
            (True, TypeError),
        )
    },
    "clipping keys": (
        clip({"rmax": 2, "dmin": 0}),
        ValueError,
        "keys for `renorm_clipping`.*dmin.*Supported.*rmax.*rmin.*dmax",
    ),
    "clipping rmax below rmin": (
        clip({"rmax": 1, "rmin": 2}),
        ValueError,
        "rmax.*rmin.*`renorm_clipping`.*Received: rmax=1.0, rmin=2.0",
    ),
    "clipping dmax negative": (
        clip({"dmax": -1}),
        ValueError,
        "dmax should be non-negative.*`renorm_clipping`.*dmax=-1.0",
    ),
    "clipping NaN": (clip({"rmax": NAN}), ValueError, "`renorm_clipping`.*not NaN"),
    "clipping string": (
        clip({"rmax": "2"}),
        TypeError,
        r"`renorm_clipping\['rmax'\]` must be a number.*Received.*'2'",
    ),
    "clipping list": (
        clip(["rmax"]),
        TypeError,
        r"`renorm_clipping` must be a dictionary.*\['rmax'\]",
    ),
    **{
        f"{name} {value!r}": (
            {name: value},
            TypeError,
            f"`{name}` must be True or False.*Received: {name}={value!r}",
        )
        for name in ("center", "scale", "renorm")
        for value in ("no", 2)
    },
    "synchronized string": (
        {"synchronized": "data"},
        TypeError,
        "`synchronized` must be True or False.*Received: synchronized='data'",
    ),
    **{
        f"replica_groups {value!r}": (
            {"synchronized": True, "replica_groups": value},
            error,
            f"`replica_groups` must .*{match}.*Received: replica_groups=",
        )
        for value, error, match in (
            (3, TypeError, "list of lists"),
            ([0, 1], TypeError, "list of lists"),
            ([["0"]], TypeError, "list of lists"),
            ([[0], "data"], TypeError, "list of lists"),
            ({0: 1}, TypeError, "list of lists"),
            ([], ValueError, "at least one group"),
            ([[0], []], ValueError, "at least one replica"),
            ([[0, -1]], ValueError, "from 0"),
            ([[0, 1], [1]], ValueError, "not have a replica or an axis twice"),
            (["data", "data"], ValueError, "twice"),
        )
    },
    "replica_groups alone": (
        {"replica_groups": [[0, 1]]},
        ValueError,
        "`replica_groups` needs synchronized=True.*Received: synchronized=False",
    ),
    **{
        f"{name} True": (
            {name: True},
            TypeError,
            f"`{name}` must be an integer above 0.*Received: {name}=True",
        )
        for name in ("virtual_batch_size", "accumulation_steps")
    },
    "freeze_statistics string": (
        {"freeze_statistics": "no"},
        TypeError,
        "`freeze_statistics` must be True or False.*Received.*'no'",
    ),
    "zero_debias string": (
        {"zero_debias": "no"},
        TypeError,
        "`zero_debias` must be True or False.*Received.*'no'",
    ),
    "debiased plain average": (
        {"momentum": None, "zero_debias": True},
        ValueError,
        "`zero_debias` must be False where `momentum` is None.*Received: "
        "momentum=None, zero_debias=True",
    ),
    "momentum a schedule above 1": (
        {"momentum": lambda step: 1.5 + step},
        ValueError,
        r"`momentum\(0\)` must be a number in \[0, 1\].*Received: momentum\(0\)=1.5",
    ),
    "momentum a schedule of None": (
        {"momentum": lambda step: None},
        TypeError,
        "`momentum` must be a function of the step that gives a number.*gives None",
    ),
    "momentum a schedule of several": (
        {"momentum": lambda step: np.ones(3)},
        TypeError,
        r"`momentum\(0\)` must be a number in",
    ),
    "renorm_momentum a schedule without renorm": (
        {"renorm_momentum": lambda step: 0.5},
        ValueError,
        "`renorm` must be True where `renorm_momentum` is a schedule.*renorm=False",
    ),
    "a scheduled limit without renorm": (
        {"renorm_clipping": {"rmax": lambda step: 2.0}},
        ValueError,
        r"`renorm` must be True where `renorm_clipping\['rmax'\]` is a schedule",
    ),
    "a scheduled limit below the other": (
        {"renorm": True, "renorm_clipping": {"rmax": lambda step: 0.5, "rmin": 1.0}},
        ValueError,
        "rmax should be greater than or equal to rmin.*rmax=0.5, rmin=1.0",
    ),
    "inference_statistics": (
        {"inference_statistics": "Batch"},
        ValueError,
        '`inference_statistics` must be "moving" or "batch".*Received.*\'Batch\'',
    ),
    "frozen statistics and inference by the batch": (
        {"freeze_statistics": True, "inference_statistics": "batch"},
        ValueError,
        "`freeze_statistics`.*must be False where `inference_statistics` is",
    ),
    "accumulation_steps 0": (
        {"accumulation_steps": 0},
        ValueError,
        "`accumulation_steps` must be an integer above 0.*Received.*=0",
    ),
    "accumulation_steps 1.5": (
        {"accumulation_steps": 1.5},
        TypeError,
        "`accumulation_steps` must be an integer above 0.*Received.*=1.5",
    ),
    "unknown argument": ({"momentun": 0.9}, ValueError, "momentun"),
    "dtype int32": ({"dtype": "int32"}, ValueError, "`dtype` must .*float.*int32"),
}


@pytest.mark.parametrize(
    ("arguments", "error", "match"), CONSTRUCTOR.values(), ids=CONSTRUCTOR
)
def test_constructor(arguments, error, match):
    with pytest.raises(error, match="(?s)" + match):
        keras_bn.BatchNormalization(**arguments)


BUILD = {
    "axis too large": (2, (4, 3), r"`axis` .*\[-2, 1\].*rank 2.*axis=2.*\(4, 3\)"),
    "axis too small": (-3, (4, 3), r"`axis` .*\[-2, 1\].*rank 2.*axis=-3.*\(4, 3\)"),
    "one of several": ((1, 5), (4, 3, 2), r"`axis` .*\[-3, 2\].*rank 3.*\(1, 5\)"),
    "twice": ((1, -1), (4, 3), r"`axis` must not name an axis twice.*\(1, -1\)"),
    "nothing left": ((0, 1), (4, 3), r"`axis` must leave at least one.*\(4, 3\)"),
    "rank 0": (-1, (), r"`axis` must be one of the axes.*a scalar.*axis=-1"),
    "rank 1": (-1, (4,), r"`axis` must leave at least one axis.*\(4,\)"),
    "unknown channels": (-1, (4, None), r"feature axis must be known.*\(4, None\)"),
    "unknown channels first": (1, (4, None, 2), "feature axis must be known.*axis 1"),
}


def test_build_by_a_number():
    with pytest.raises(TypeError, match=r"`input_shape` must be a tuple.*=8"):
        keras_bn.BatchNormalization().build(8)


@pytest.mark.parametrize(("axis", "shape", "match"), BUILD.values(), ids=BUILD)
def test_build(axis, shape, match):
    layer = keras_bn.BatchNormalization(axis=axis)
    with pytest.raises(ValueError, match=match):
        layer.build(shape)
    assert not layer.weights


@pytest.mark.parametrize(("axis", "shape", "match"), BUILD.values(), ids=BUILD)
def test_functional_model(axis, shape, match):
    inputs = keras.Input(batch_shape=shape)
    with pytest.raises(ValueError, match=match):
        keras_bn.BatchNormalization(axis=axis)(inputs)


REAL = "`inputs` must hold real numbers.*Received: inputs of dtype "
SYMBOLIC = {
    "complex": (
        keras.Input((4,), dtype="complex64"),
        None,
        TypeError,
        REAL + "complex",
    ),
    "string": (keras.Input((4,), dtype="string"), None, TypeError, REAL + "string"),
    "mask rank": (
        keras.Input((5, 4)),
        keras.Input((), dtype="bool"),
        ValueError,
        "`mask` must have the input's shape without the feature axis",
    ),
    "mask shape": (
        keras.Input((5, 4)),
        keras.Input((3,), dtype="bool"),
        ValueError,
        "`mask` must have the input's shape without the feature axis",
    ),
}


@pytest.mark.parametrize(
    ("inputs", "mask", "error", "match"), SYMBOLIC.values(), ids=SYMBOLIC
)
def test_functional_inputs(inputs, mask, error, match):
    with pytest.raises(error, match=match):
        keras_bn.BatchNormalization()(inputs, mask=mask)


MASK = (
    r"`mask` must have the input's shape without the feature axis, \(5, 7\).*"
    r"Received: mask of shape \({}\) for an input of shape \(5, 7, 4\)"
)

CALL = {
    "mask of full rank": ({"mask": np.ones((5, 7, 4), bool)}, MASK.format("5, 7, 4")),
    "mask of low rank": ({"mask": np.ones(5, bool)}, MASK.format("5,")),
    "mask of a wrong shape": ({"mask": np.ones((7, 5), bool)}, MASK.format("7, 5")),
    "mask of counts": (
        {"mask": np.array([0, 1, 2, 1, 1])[:, None] * np.ones(7, int)},
        "`mask` must be boolean.*argument `weights`.*mask of dtype int",
    ),
    "a dictionary": ({"inputs": {"x": random(5, 7, 4)}}, "`inputs` must be one tensor"),
    "mask a list": ({"mask": [[True] * 7] * 5}, "`mask` must be a tensor.*type list"),
    "complex": ({"inputs": random(5, 7, 4) * 1j}, REAL + "complex"),
    "channels": ({"inputs": random(5, 7, 3)}, r"axis 2 .* value 4.*\(5, 7, 3\)"),
    "rank": ({"inputs": random(5, 4)}, r"expected ndim=3, found ndim=2.*\(5, 4\)"),
    "training a string": (
        {"training": "no"},
        "`training` must be a Python boolean.*'no'",
    ),
}


def layer_and_weights(**arguments):
    layer = keras_bn.BatchNormalization(**arguments)
    layer(random(5, 7, 4), training=True)
    return layer, [frameworks.numpy(w.value).copy() for w in layer.weights]


@pytest.mark.parametrize(("training", "renorm"), [(False, False), (True, True)])
@pytest.mark.parametrize(("arguments", "match"), CALL.values(), ids=CALL)
def test_call_that_raises_leaves_the_layer_as_it_was(
    arguments, match, training, renorm
):
    layer, before = layer_and_weights(renorm=renorm)
    arguments = {"inputs": random(5, 7, 4), "training": training, **arguments}
    with pytest.raises((ValueError, TypeError), match=match):
        layer(**arguments)
    after = [frameworks.numpy(w.value) for w in layer.weights]
    np.testing.assert_equal(after, before)
    y = frameworks.numpy(layer(random(5, 7, 4), training=True))
    assert np.all(np.isfinite(y))
    after = [frameworks.numpy(w.value) for w in layer.weights[2:]]
    assert all(np.any(a != b) for a, b in zip(after, before[2:], strict=True))


NOT_NUMBERS = {
    "strings": (np.array([["a", "b", "c", "d"]]), "<U1"),
    "objects": (np.array([[1, 2, 3, "d"]], dtype=object), "object"),
    "dates": (np.full((1, 4), "2020-01-01", "datetime64[D]"), "datetime64"),
}


@pytest.mark.parametrize(("x", "dtype"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_ops_take_no_arrays_of_other_things(x, dtype):
    match = f"`x` must hold real numbers.*Received: x of dtype {dtype}"
    with pytest.raises(TypeError, match=match):
        batch_norm_train(x)
    with pytest.raises(TypeError, match=match):
        batch_norm_inference(x, [0.0] * 4, [1.0] * 4)


@pytest.mark.parametrize(("x", "dtype"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_layer_takes_no_arrays_of_other_things(x, dtype):
    layer = keras_bn.BatchNormalization()
    layer(random(5, 4))
    with pytest.raises(TypeError, match=REAL + dtype):
        layer(x, training=True)


OPS = {
    "gamma": ({"gamma": [1.0, 2.0]}, ValueError, r"`gamma` .* \(4,\).*shape \(2,\)"),
    "gamma scalar": ({"gamma": 1.0}, ValueError, r"`gamma` .* \(4,\).*shape \(\)"),
    "beta": (
        {"beta": np.ones((1, 4))},
        ValueError,
        r"`beta` .* \(4,\).*shape \(1, 4\)",
    ),
    "axis": ({"axis": 2}, ValueError, r"`axis` .*\[-2, 1\].*axis=2"),
    "axis twice": ({"axis": (1, -1)}, ValueError, "`axis` .* twice"),
    "axis float": ({"axis": 1.5}, TypeError, AXIS + "1.5"),
    "epsilon": ({"epsilon": 0.0}, ValueError, EPSILON + "0.0"),
    "epsilon string": ({"epsilon": "x"}, TypeError, EPSILON + "'x'"),
    "x complex": ({"x": random(5, 4) * 1j}, TypeError, "`x` must .*x of dtype complex"),
    "x complex list": ({"x": [[1j, 2.0]]}, TypeError, "`x` must hold real numbers"),
    "x symbolic": ({"x": keras.Input((4,))}, TypeError, "`x` must be .* with values"),
    "x rank 1": ({"x": [1.0, 2.0]}, ValueError, r"`axis` must leave .*\(2,\)"),
    "x a number": ({"x": 1.0}, ValueError, r"`axis` must be .*a scalar has none"),
}
TRAIN = {
    **OPS,
    "mask": (
        {"mask": np.ones(4, bool)},
        ValueError,
        r"`mask` must .*mask of shape \(4,",
    ),
    "mask rank": ({"mask": np.ones((5, 4), bool)}, ValueError, "`mask` must have"),
}
STATISTICS = {"mean": [0.0] * 4, "variance": [1.0] * 4}
INFERENCE = {
    **OPS,
    "mean": ({"mean": [0.0]}, ValueError, r"`mean` .* \(4,\).*mean of shape \(1,\)"),
    "variance": ({"variance": [1.0]}, ValueError, r"`variance` .*shape \(1,\)"),
    "mean None": ({"mean": None}, TypeError, "`mean` and `variance` must .*mean=None"),
}


@pytest.mark.parametrize(("arguments", "error", "match"), TRAIN.values(), ids=TRAIN)
def test_batch_norm_train(arguments, error, match):
    with pytest.raises(error, match=match):
        batch_norm_train(**{"x": random(5, 4), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "match"), INFERENCE.values(), ids=INFERENCE
)
def test_batch_norm_inference(arguments, error, match):
    with pytest.raises(error, match=match):
        batch_norm_inference(**{"x": random(5, 4), **STATISTICS, **arguments})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"center": False, "scale": False}])
@pytest.mark.parametrize(("built", "given"), [(1, 5), (5, 1), (3, 5)])
def test_stateless_call_with_other_channels(built, given, options, training):
    # One channel and several would broadcast without a word.
    layer = keras_bn.BatchNormalization(**options)
    layer.build((None, built))
    state = [
        [variable.value for variable in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    ]
    x = frameworks.tensor(random(4, given))
    with pytest.raises(ValueError, match=rf"`inputs` must fit.*\(4, {given}\)"):
        layer.stateless_call(*state, x, training=training)


def test_settings_that_contradict_each_other_later():
    layer = keras_bn.BatchNormalization(freeze_statistics=True)
    match = "`freeze_statistics`.*must be False where `inference_statistics`"
    with pytest.raises(ValueError, match=match):
        layer.inference_statistics = "batch"
    layer.freeze_statistics = False
    layer.inference_statistics = "batch"
    with pytest.raises(ValueError, match=match):
        layer.freeze_statistics = True
    assert not layer.freeze_statistics


@pytest.mark.parametrize(
    ("layer", "along"),
    [
        (keras_bn.BatchNormalization(), {}),
        (keras_bn.DomainBatchNormalization(2), {"domain": 1}),
    ],
    ids=["plain", "domain"],
)
def test_training_that_is_traced(layer, along):
    layer.build((None, 3))
    x = frameworks.tensor(random(4, 3))

    def call(training):
        return layer(x, training=training, **along)

    run = frameworks.compiled(call)
    if BACKEND == "torch":  # whose compiler looks at the value, and goes by it
        import torch

        run = lambda training: torch.func.vmap(call)(training[None])  # noqa: E731
    with pytest.raises(ValueError, match=r"`training` must .*traced and has no value"):
        run(frameworks.tensor(np.array(True)))


def test_momentum_set_later_is_checked():
    layer = keras_bn.BatchNormalization()
    layer.build((None, 3))
    layer.momentum = 1.5
    before = [frameworks.numpy(weight).copy() for weight in layer.weights]
    with pytest.raises(ValueError, match=r"(?s)`momentum`.*Received: momentum=1.5"):
        layer(random(4, 3), training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(frameworks.numpy(weight), value)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, NAN])
def test_moving_average_momentum(momentum):
    with pytest.raises(ValueError, match=MOMENTUM.format("momentum")):
        moving_average(random(3), random(3), momentum)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"epsilon": 0.0}, EPSILON), ({"clipping": {"r": 1}}, "invalid keys")],
)
def test_renorm_correction(arguments, match):
    with pytest.raises(ValueError, match=match):
        renorm_correction(*random(4, 3), **arguments)


ONLY_JAX = pytest.mark.skipif(
    BACKEND != "jax", reason="the other backends have float64 without a switch"
)
X64 = "float64 is not available.*jax_enable_x64.*Received: dtype float64 on backend jax"


@ONLY_JAX
def test_float64_layer_where_jax_has_it_off():
    with pytest.raises(ValueError, match=X64):
        keras_bn.BatchNormalization(dtype="float64")


@ONLY_JAX
def test_float64_input_where_jax_has_it_off():
    with pytest.raises(ValueError, match=X64):
        batch_norm_train(random(5, 4).astype("float64"))
