"""The check of what a model and its copy compute."""

import keras
import numpy as np
import pytest

import keras_bn
from cases_copies import COPIES, Backbone
from cases_tools import images, numpy, randomize, weights_of
from keras_bn.tools._copies.check import check_outputs, made_up
from slow import slow

L = keras.layers
ops = keras.ops
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")
OTHER = "computes something else"


def test_made_up_inputs_are_as_the_model_takes_them():
    inputs = [
        keras.Input((None,), dtype="int32"),
        keras.Input((2,), dtype="bool"),
        keras.Input((3,), batch_size=5),
    ]
    made = made_up(keras.Model(inputs, inputs))
    dtypes = [keras.backend.standardize_dtype(one.dtype) for one in made]
    assert dtypes == ["int32", "bool", "float32"]
    numbers, booleans, values = map(numpy, made)
    shapes = [one.shape for one in (numbers, booleans, values)]
    assert shapes == [(2, 64), (2, 2), (5, 3)]
    assert set(numbers.ravel()) == set(booleans.ravel()) == {0, 1}
    assert len(set(values.ravel())) == 15


@ON_TORCH
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: keras.Sequential([keras.Input((1,), dtype="string"), L.Identity()]),
            "`check` must be data where a model takes strings. .*model 'sequential",
        ),
        (
            next(one for one in COPIES if one.name == "two models").build,
            "`check` must be data where the model does not say.*of class Two",
        ),
    ],
    ids=["strings", "no graph"],
)
def test_inputs_that_cannot_be_made_up(build, message):
    with pytest.raises(ValueError, match=message):
        made_up(build())


# How far outputs may be from each other, of the largest; and what a last bit makes.
ALLOWED = {"float64": 1e-10, "float32": 1e-4, "float16": 3e-2, "bfloat16": 0.2}
LAST_BIT = {"float64": 2**-52, "float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}


def _rescaling(*arguments, dtype="float32"):
    # Of Python's numbers TensorFlow makes float32 first.
    arguments = [np.array(one, "float64") for one in arguments]
    inside = keras.Sequential([L.Rescaling(*arguments, dtype=dtype)])
    return keras.Sequential([keras.Input((4,), dtype=dtype), inside])


@ON_TORCH
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("size", [1, 2**-6], ids=["as inputs", "small"])
def test_a_check_allows_what_rounding_makes(dtype, size):
    one, near, far = (
        _rescaling(size * (1 + apart * ALLOWED[dtype]), dtype=dtype)
        for apart in (0, 0.9, 1.6)
    )
    check_outputs(one, near, True)
    with pytest.raises(ValueError, match=OTHER):
        check_outputs(one, far, True)


@ON_TORCH
def test_a_check_allows_what_rounding_makes_in_a_graph_without_layers():
    inputs = keras.Input((4,))
    one, near = (keras.Model(inputs, inputs * f) for f in (1, 1 + 9e-5))
    check_outputs(one, near, True)


@ON_TORCH
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", LAST_BIT)
def test_a_check_allows_ten_times_what_a_last_bit_of_the_inputs_makes(dtype):
    """Where that is more: here the outputs are 0, but for the last bits."""
    one, near, far = (
        _rescaling(1 + bits * LAST_BIT[dtype], -1, dtype=dtype) for bits in (0, 10, 11)
    )
    data = np.ones((2, 4), "float64")
    check_outputs(one, near, data)
    with pytest.raises(ValueError, match=OTHER):
        check_outputs(one, far, data)


@ON_TORCH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_check_of_half_precision_between_inputs_and_outputs_in_float32(dtype):
    """As under mixed precision, whose inputs' last bit nobody sees."""

    def model(factor, gain=1.0):
        sine = L.Lambda(lambda x: ops.sin(gain * x), dtype="float32")
        rescaling = L.Rescaling(factor, dtype=dtype)
        return keras.Sequential([keras.Input((4,)), rescaling, sine])

    check_outputs(model(1.0), model(1 + 0.5 * ALLOWED[dtype]), True)
    # Amplified: what a last bit of the half precision makes is no difference.
    check_outputs(model(1.0, 200.0), model(1 + LAST_BIT[dtype], 200.0), True)
    with pytest.raises(ValueError, match=OTHER):
        check_outputs(model(1.0), model(1 + 3 * ALLOWED[dtype]), True)


@ON_TORCH
@pytest.mark.parametrize("apart", [np.inf, -np.inf, np.nan])
def test_a_check_of_what_is_not_finite(apart):
    def model(*added):
        inputs = keras.Input((4,))
        return keras.Model(inputs, inputs + np.array(added, "float32"))

    check_outputs(model(apart, 0, 0, 0), model(apart, 0, 0, 0), True)
    unlike = np.inf if np.isnan(apart) else -apart
    for other in ((0, 0, 0, 0), (unlike, 0, 0, 0), (apart, 1, 0, 0)):
        with pytest.raises(ValueError, match=OTHER):
            check_outputs(model(apart, 0, 0, 0), model(*other), True)


@ON_TORCH
def test_outputs_of_other_shapes_are_something_else():
    one, other = (
        keras.Sequential([keras.Input((4,)), L.Reshape(shape)])
        for shape in ((4,), (2, 2))
    )
    with pytest.raises(ValueError, match="something else: outputs differ by inf"):
        check_outputs(one, other, True)


@ON_TORCH
def test_whole_numbers_are_equal_or_something_else():
    """In one of two outputs, and the other has nothing in it."""

    def model(number):
        inputs = keras.Input((4,))
        numbers = ops.full_like(inputs, number, dtype="int32")
        return keras.Model(inputs, [inputs[:, :0], numbers])

    check_outputs(model(300), model(300), True)
    with pytest.raises(ValueError, match=r"by 1\. .* is 300, .* them by 0\."):
        check_outputs(model(300), model(301), True)


class Trains(L.Layer):
    """Is in training where nobody says that it is not."""

    def __init__(self, mean):
        super().__init__()
        initializer = keras.initializers.Constant(mean)
        self.norm = L.BatchNormalization(moving_mean_initializer=initializer)

    def call(self, x, training=True):
        return self.norm(x, training=training)


@ON_TORCH
def test_a_check_is_of_inference():
    one, other = (
        keras.Sequential([keras.Input((4,)), Trains(mean)]) for mean in (0, 1)
    )
    with pytest.raises(ValueError, match=OTHER):
        check_outputs(one, other, True)


@ON_TORCH
def test_whether_to_check():
    one, other = (_rescaling(factor) for factor in (1, 2))
    check_outputs(one, other, False)
    check_outputs(one, other, np.False_)
    check_outputs(one, other, None)
    with pytest.raises(ValueError, match=OTHER):
        check_outputs(one, other, np.True_)


@ON_TORCH
def test_of_data_the_first_batch_is_checked():
    def model(below):
        inputs = keras.Input((1,))
        return keras.Model(inputs, ops.where(inputs < below, inputs, 0.0))

    data = np.arange(64.0)[:, None]
    check_outputs(model(32), model(99), data)
    with pytest.raises(ValueError, match=OTHER):
        check_outputs(model(31), model(99), data)


def _numbers():
    inputs = {"ids": keras.Input((3,), dtype="int32", name="ids")}
    x = L.BatchNormalization()(L.Dense(2)(L.Embedding(2, 4)(inputs["ids"])))
    return keras.Model(inputs, {"y": L.Dropout(0.5)(x)})


def _chaotic():
    """Amplifies the last bit of an input beyond its outputs."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(4),
            L.BatchNormalization(),
            L.Lambda(lambda x: ops.sin(1e8 * x)),
        ]
    )


@pytest.mark.parametrize(
    ("build", "tool"),
    [
        (_chaotic, keras_bn.fold),
        pytest.param(_numbers, keras_bn.convert, marks=ON_TORCH),
        pytest.param(_numbers, keras_bn.fold, marks=ON_TORCH),
        pytest.param(_chaotic, keras_bn.convert, marks=ON_TORCH),
    ],
)
def test_a_check_of_what_is_right_passes_and_writes_nothing(build, tool):
    model = randomize(build())
    before = weights_of(model)
    tool(model, check=True)
    assert weights_of(model) == before


OF_A_BACKBONE = pytest.mark.filterwarnings("ignore:Model '.*' is of class Backbone")


@OF_A_BACKBONE
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(True, id="made up"),
        pytest.param(images(3, 4), id="data", marks=ON_TORCH),
    ],
)
def test_a_check_finds_a_copy_that_computes_something_else(check):
    model = randomize(Backbone(3))
    with pytest.raises(ValueError, match=OTHER):
        keras_bn.convert(model, check=check, epsilon=0.5)


@ON_TORCH
@OF_A_BACKBONE
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"to": "group", "check": True},
            ValueError,
            "`check` must be False where.*to='group'",
        ),
        (
            {"check": images(3, 5)},
            ValueError,
            r"`check`, as data, must give batches of the shape",
        ),
        (
            {"check": "no"},
            TypeError,
            r"`check`, as data, must be an array.*Received: .*str",
        ),
    ],
    ids=["group", "shape", "text"],
)
def test_a_check_that_cannot_be_made(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_bn.convert(Backbone(3), **arguments)


@ON_TORCH
def test_a_check_by_data_of_a_model_that_does_not_say_its_inputs():
    model = next(one for one in COPIES if one.name == "two models").build()
    keras_bn.convert(model, check=images(3, 4))
