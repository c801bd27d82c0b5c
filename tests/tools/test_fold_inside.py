"""`fold` inside of layers of a user's class, by what their `call` does."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
from cases_tools import images, layers_in, numpy, randomize, weights_of
from keras_bn import BatchNormalization as Norm
from keras_bn._keras import attached_mask
from slow import slow

L = keras.layers


class Block(L.Layer):
    """What most such layers are: weights without a bias, norm, activation."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = L.Dense(units, use_bias=False, name="dense")
        self.norm = Norm(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.units))
        self.built = True

    def call(self, x, training=None, negative=False):
        y = self.norm(self.dense(-x if negative else x), training=training)
        return ops.relu(y)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Several(Block):
    """Layers in lists and dictionaries, other blocks, models, a fused activation."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.listed = [L.Dense(units, name="l"), Norm(activation="tanh", name="n")]
        self.named = {"one": L.Dense(units, name="d"), "two": Norm(name="m")}
        self.block = Block(units, name="block")
        self.inner = keras.Sequential([L.Dense(units), Norm()], name="inner")

    def build(self, shape):
        super().build(shape)
        for layer in (*self.listed, *self.named.values(), self.block, self.inner):
            layer.build((*shape[:-1], self.units))

    def call(self, x, training=None):
        x = super().call(x, training=training)
        for layer in (*self.listed, self.block, self.inner):
            x = layer(x)
        y = self.named["one"](x)
        return {"y": self.named["two"](1.0 - 0.5 * y), "x": x}

    def compute_output_shape(self, shape):
        return {"y": super().compute_output_shape(shape), "x": shape}


class Branches(Block):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.other = L.Dense(units, name="other")

    def build(self, shape):
        super().build(shape)
        self.other.build(shape)

    def call(self, x):
        return self.norm(ops.concatenate([self.dense(x), self.other(x)], -1)[..., :3])


class Frameworks(Block):
    reason = "whatever it says\nat first:\nwants values"

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError(self.reason)
        return super().call(x)


class Around(Block):
    """Keras tells of an error inside, in bold, and where it was."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.inner = Frameworks(units)
        self.inner.reason = ""

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


class Plain(L.Layer):
    """Without a norm."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


class AlwaysTraining(Block):
    def call(self, x):
        return self.norm(self.dense(x), training=True)


class ReadsKernel(Block):
    def call(self, x):
        return self.norm(self.dense(x)) + ops.sum(self.dense.kernel)


class Transposed(L.Layer):
    """With a weight that is another layer's."""

    def __init__(self, dense):
        super().__init__()
        self.kernel = dense.kernel

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.kernel))


class Strided(Block):
    """Whose convolution pads where it is called on an odd length."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.conv = L.Conv1D(units, 2, strides=2, padding="same")

    def build(self, shape):
        self.norm.build(shape)
        self.conv.build(shape)

    def call(self, x):
        return self.conv(self.norm(x))

    def compute_output_shape(self, shape):
        return self.conv.compute_output_shape(shape)


class MultipliesKernel(Block):
    def call(self, x):
        return self.norm(self.dense(x)) + ops.matmul(x, self.dense.kernel)


class ReadsMask(Block):
    def call(self, x, mask=None):
        y = self.dense(x)
        if mask is not None:
            y = y * ops.cast(mask, y.dtype)[..., None]
        return self.norm(y)


class IgnoresMask(Block):
    def call(self, x, mask=None):
        return self.norm(self.dense(x))


class ReadsTwoMasks(Block):
    """As Keras names them where there are several tensors."""

    def call(self, x, other, x_mask=None, other_mask=None):
        return self.norm(self.dense(x if other_mask is None else other))


class HandsMaskOn(Block):
    def call(self, x, mask=None):
        return self.norm(2.0 * self.dense(x), mask=mask)


class ChoosesByMask(Branches):
    def call(self, x, mask=None):
        return self.norm((self.dense if mask is None else self.other)(x))


class HandsWeightsOn(Block):
    def call(self, x):
        return self.norm(self.dense(x), weights=ops.max(x, -1) ** 2, residual=None)


class WithResidual(Block):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.second = Norm(name="second")

    def build(self, shape):
        super().build(shape)
        self.second.build((*shape[:-1], self.units))

    def call(self, x):
        return self.second(self.norm(self.dense(x), residual=x))


class OtherSize(Block):
    """Its model is built for another length than it is called on."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.inner = keras.Sequential([L.Dense(units), Norm()], name="inner")

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build((*shape[:-1], 2 * shape[-1]))
        self.inner.build((shape[0], shape[1] + 2, self.units))

    def call(self, x, training=None):
        both = ops.concatenate([x, self.norm(x)], axis=-1)
        return self.inner(self.dense(both), training=training)


class NotesDtypes(OtherSize):
    def noted(self, dtype):
        """To be replaced."""

    def call(self, x):
        self.noted(keras.backend.standardize_dtype(x.dtype))
        return super().call(ops.cast(x, self.compute_dtype))


class DrawsNumbers(Block):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        noise = keras.random.uniform((1, 1, self.units), 1.0, 1.01, seed=self.seeds)
        return self.norm(self.dense(x) * noise) * 0.0


class Notes(Block):
    noted = None

    def call(self, x):
        self.noted = self.dense(x)
        return self.norm(self.noted)


class Private(Block):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self._hidden = Norm(name="hidden")

    def build(self, shape):
        super().build(shape)
        self._hidden.build((*shape[:-1], self.units))

    def call(self, x):
        return self._hidden(self.dense(x))


class Remembers(Block):
    """Has a layer of a graph inside for an attribute too, where nothing can stand."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        self.inner = keras.Sequential([L.Dense(units), Norm()], name="inner")
        self.last = self.inner.layers[-1]

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


class PreNorm(Block):
    """Norm and activation first: what goes with the norm stands outside."""

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x):
        return self.dense(ops.relu(self.norm(x)))


class Otherwise(Block):
    """Whose way hangs on which argument is given."""

    def call(self, x, scale=1.0, shift=None, activate=None):
        y = self.dense(x) * scale
        y = y if shift is None else ops.relu(y + shift)
        return self.norm(ops.relu(y) if activate is True else y)


class Shares(Frameworks):
    """Calls a layer that others call as well."""

    def __init__(self, dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense


class Activated(Block):
    def call(self, x):
        return self.norm(ops.relu(self.dense(x)))


class Case(NamedTuple):
    name: str
    layers: object
    folded: int
    left: tuple = ()


def _twice(x):
    block = Block()
    return block(x), block(ops.concatenate([x, x], axis=1))


def _in_several_ways(x):
    block = Block()
    return block(x), block(x, negative=True), block(x)


def _with_other_arguments(x):
    """Layers that are called twice each, with one thing that differs."""
    ways = [
        ({"scale": 2.0}, {"shift": 2.0}),
        ({"scale": 2.0}, {"scale": 3.0}),
        ({"scale": 2.0}, {"scale": x[:, :, :1]}),
        ({"scale": x[:1, 0, 0]}, {"scale": x[:, :, :1]}),
        ({"scale": np.float32([1, -2, 3])}, {"scale": np.float32([3, 2, 1])}),
        tuple({"scale": keras.Variable(2.0, name=name)} for name in "ab"),
        ({"activate": 1}, {"activate": True}),
        ({}, {"x": ops.cast(x, "int32")}),
    ]
    blocks = [(Otherwise(), way) for way in ways]
    return [block(**{"x": x, **how}) for block, way in blocks for how in way]


def _at_an_odd_length(x):
    block = Strided()
    half = block(x)
    return block(ops.concatenate([half, half[:, :1]], axis=1))


def _with_a_weight_of_another(x):
    dense = L.Dense(3, use_bias=False, name="dense")
    y = Norm()(dense(x))
    return y, Transposed(dense)(y)


def _input_among_the_outputs(x):
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, [Norm(name="norm")(inputs), inputs])
    return model(L.Dense(3)(x))


def _one_output_twice(x):
    inputs = keras.Input((4, 3))
    y = L.Dense(3)(inputs)
    one, other = keras.Model(inputs, [y, y])(x)
    return Norm(name="norm")(one), other


def _shared_with_what_cannot_be_followed(x):
    dense = L.Dense(3, use_bias=False, name="dense")
    y = Shares(dense)(x)
    return y, Norm()(dense(x))


def _twice_by_another_value(x):
    block = Block()
    return block(x, negative=False), block(x, negative=True)


def _twice_by_an_equal_value(x):
    block = Block()
    return [block(x, negative=float("0.5")) for _ in range(2)]  # no two are one object


def _then_in_training(x):
    block = Block()
    return block(block(x), training=True)


def _first_in_training(x):
    block = Block()
    return block(block(x, training=True))


CASES = [
    Case("block", lambda x: Block()(x), 1),
    Case("several", lambda x: Several()(x), 5),
    Case("step by step", lambda x: L.TimeDistributed(Block())(x), 1),
    Case("ignores a mask", lambda x: IgnoresMask()(x), 1),
    Case("hands a mask on", lambda x: HandsMaskOn()(x), 1),
    Case("hands weights on", lambda x: HandsWeightsOn()(x), 1),
    Case("notes a tensor", lambda x: Notes()(x), 1),
    Case("built for another size", lambda x: OtherSize()(x), 2),
    Case("at two sizes", _twice, 1),
    Case("twice alike", _twice_by_an_equal_value, 1),
    Case("across a border", lambda x: PreNorm()(L.Dense(3)(x)), 1),
    Case(
        "across borders, ahead",
        lambda x: keras.Sequential([L.Dense(2)])(
            keras.Sequential([L.ReLU(), Norm()])(x)
        ),
        1,
    ),
    Case(
        "across a border that another crosses",
        lambda x: (lambda y: [PreNorm()(y), y])(L.Dense(3)(x)),
        0,
        ("is used by",),
    ),
    # What must stay.
    Case("in several ways", _in_several_ways, 0, ("is called in several ways",)),
    Case(
        "with other arguments",
        _with_other_arguments,
        0,
        ("is called in several ways",) * 8,
    ),
    Case("at an odd length", _at_an_odd_length, 0, ("pads with zeros",)),
    Case(
        "squeezed at a border",
        lambda x: keras.Sequential([keras.Input((4,)), Norm()])(L.Dense(1)(x)),
        0,
        ("nothing comes before it",),
    ),
    Case("a layer without a norm", lambda x: Norm()(Plain()(x)), 0, ("in the way",)),
    Case("an input among the outputs", _input_among_the_outputs, 0, ("is used by",)),
    Case("one output twice", _one_output_twice, 0, ("is used by",)),
    Case(
        "a weight of another",
        _with_a_weight_of_another,
        0,
        ("something else reads the weights of 'dense'",),
    ),
    Case(
        "by another value",
        _twice_by_another_value,
        0,
        ("is called in several ways",),
    ),
    Case("in training, later", _then_in_training, 0, ("training=True",)),
    Case("in training, at first", _first_in_training, 0, ("training=True",)),
    Case("always in training", lambda x: AlwaysTraining()(x), 0, ("training=True",)),
    Case("reads a kernel", lambda x: ReadsKernel()(x), 0, ("something else reads",)),
    Case(
        "multiplies a kernel",
        lambda x: MultipliesKernel()(x),
        0,
        ("something else reads the weights of 'dense'",),
    ),
    Case("draws numbers", lambda x: DrawsNumbers()(x), 0, ("draws random numbers",)),
    Case("wants values", lambda x: Frameworks()(x), 0, ("followed: wants values",)),
    Case("wants values, inside", lambda x: Around()(x), 0, ("followed: TypeError",)),
    Case(
        "in a private attribute",
        lambda x: Block()(Private()(x)),
        2,
        ("nothing that is followed calls it",),
    ),
    Case(
        "holds a layer of a graph",
        lambda x: Block()(Remembers()(x)),
        1,
        ("inside 'remembers' (Remembers), which cannot be copied with others",),
    ),
    Case(
        "with a residual",
        lambda x: WithResidual()(x),
        0,
        ("it is called with `residual`",) * 2,
    ),
    Case("reads a mask", lambda x: ReadsMask()(x=x), 0, ("reads a mask",)),
    Case("chooses by a mask", lambda x: ChoosesByMask()(x), 0, ("reads a mask",)),
    Case(
        "reads one of two masks",
        lambda x: ReadsTwoMasks()(x, L.ReLU()(x)),
        0,
        ("reads a mask",),
    ),
    Case(
        "shared with what cannot be followed",
        _shared_with_what_cannot_be_followed,
        0,
        ("followed: wants values", "'dense' is called 2 times"),
    ),
    Case("activated", lambda x: Activated()(x), 0, ("(Relu) is in the way",)),
    Case("slices", lambda x: Branches()(x), 0, ("(GetItem) is in the way",)),
]


# A `call` is followed on Keras's symbolic tensors, which know no backend.
QUICK = {"several", "wants values"}
ON_TORCH = slow(
    "models that JAX compiles, of which some come from files", but_on="torch"
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else ON_TORCH)
        for case in CASES
    ],
)
def test_outputs_agree_and_counts_are_as_stated(case, tmp_path):
    keras.utils.clear_session(free_memory=False)
    inputs = keras.Input((4, 3))
    model = randomize(keras.Model(inputs, case.layers(inputs)))
    before, calls = weights_of(model), _calls(model)
    folded, report = keras_bn.fold(model, explain=True)
    assert weights_of(model) == before
    assert _calls(model) == calls
    assert len(report.folded) == case.folded
    assert len(report.left) == len(case.left)
    assert all(
        why in row.reason for why, row in zip(case.left, report.left, strict=True)
    )
    x = images(2, 4, 3)
    expected, received = _run(model, x), _run(folded, x)
    for one, other in zip(expected, received, strict=True):
        assert np.abs(other - one).max() <= 3e-6 * np.abs(one).max()
    if not case.left:
        folded.save(tmp_path / "folded.keras")
        loaded = keras.saving.load_model(
            tmp_path / "folded.keras", custom_objects=_CLASSES
        )
        for one, other in zip(received, _run(loaded, x), strict=True):
            np.testing.assert_array_equal(other, one)


_CLASSES = {
    cls.__name__: cls
    for cls in (
        *(Block, Several, IgnoresMask, HandsMaskOn, HandsWeightsOn),
        *(PreNorm, Notes, OtherSize),
    )
}


def _run(model, x):
    compiled = keras.backend.backend() == "jax"
    y = model.predict_on_batch(x) if compiled else model(x)
    return [numpy(one) for one in keras.tree.flatten(y)]


def _calls(model):
    """What symbolic calls leave in layers."""
    every = layers_in(model)
    return [
        (len(one._inbound_nodes), len(one._outbound_nodes), {**vars(one)})
        for one in every
    ]


@ON_TORCH
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_call_is_followed_in_the_dtypes_that_it_has(monkeypatch, dtype, autocast):
    seen = []
    monkeypatch.setattr(NotesDtypes, "noted", lambda _, one: seen.append(one))
    inputs = [keras.Input(shape, dtype=dtype) for shape in ((4, 3), (5, 3), (2, 4, 3))]
    how = {"dtype": "mixed_bfloat16", "autocast": autocast}
    layer = NotesDtypes(**how)
    steps = L.TimeDistributed(NotesDtypes(**how), **how)
    calls = [layer(inputs[0]), layer(inputs[1]), steps(inputs[2])]
    model = keras.Model(inputs, calls)
    model([np.ones((2, *one.shape[1:]), dtype) for one in inputs])
    keras_bn.fold(model)
    assert len(seen) > 1
    assert len(set(seen)) == 1


class Whole(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(name="block")
        self.norm = Norm(name="norm")
        self.head = L.Dense(2, name="head")

    def call(self, x, training=True):
        return self.head(self.norm(self.block(x, training=training)))

    def get_config(self):
        return {"name": self.name}


@ON_TORCH
def test_a_subclassed_model_is_followed(tmp_path):
    model = Whole()
    x = images(2, 3)
    model(x)
    randomize(model)
    folded, report = keras_bn.fold(model, explain=True)
    assert [row.into for row in report.rows] == ["block/dense", "head"]
    assert type(folded).__mro__[-len(Whole.__mro__)] is Whole
    expected, found = (numpy(one(x, training=False)) for one in (model, folded))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    folded.save(tmp_path / "folded.keras")
    classes = {"Whole": Whole, "Block": Block}
    loaded = keras.saving.load_model(tmp_path / "folded.keras", custom_objects=classes)
    np.testing.assert_array_equal(numpy(loaded(x, training=False)), found)


class AndNothing(Whole):
    def call(self, x):
        return super().call(x, training=False), None


@ON_TORCH
def test_a_subclassed_model_may_give_what_is_no_tensor():
    model = AndNothing()
    model(images(2, 3))
    _, report = keras_bn.fold(model, explain=True)
    assert [row.into for row in report.rows] == ["block/dense", "head"]


class OfValues(Whole):
    def call(self, x, training=None):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("wants values")
        return super().call(x)


class OfTwo(Whole):
    def build(self, x_shape, other_shape):
        self.built = True

    def call(self, x, other):
        return super().call(x + other)


@ON_TORCH
def test_a_subclassed_model_of_several_inputs_is_an_error():
    model = OfTwo()
    model(images(2, 3), images(2, 3))
    with pytest.raises(ValueError, match=r"`model` .* no single input of a known sh"):
        keras_bn.fold(model)


class Warns(Block):
    def call(self, x):
        warnings.warn("of its own", UserWarning, stacklevel=1)
        return super().call(x)


@ON_TORCH
def test_following_a_call_warns_of_nothing():
    inputs = keras.Input((3,))
    _, report = keras_bn.fold(keras.Model(inputs, Warns()(inputs)), explain=True)
    assert len(report.folded) == 1


@ON_TORCH
def test_a_subclassed_model_that_cannot_be_followed_is_an_error():
    model = OfValues()
    model(images(2, 3))
    with pytest.raises(ValueError, match=r"`model` .* followed: wants values"):
        keras_bn.fold(model)


class Apart(Block):
    """Something stands between the norm and what takes it in: activations stay."""

    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)
        half = {"dtype": "mixed_bfloat16"}
        self.dense = L.Dense(units, use_bias=False, name="dense", **half)
        self.norm = Norm(activation="relu", name="norm", **half)

    def call(self, x):
        return self.norm(2.0 * self.dense(x))


def test_what_stands_in_the_place_of_a_norm_is_like_it():
    model = keras.Sequential([keras.Input((3,)), Apart()])
    norm = keras_bn.fold(model).layers[0].norm
    kind = type(norm).__name__, norm.name, norm.dtype_policy.name
    assert kind == ("Folded", "norm", "mixed_bfloat16")
    assert norm.get_config()["activation"] == "relu"
    assert norm.built
    assert norm.count_params() == 0
    y = norm(L.Masking()(np.array([[[-1, 2], [0, 0]]], "float32")))
    np.testing.assert_array_equal(numpy(ops.cast(y, "float32")), [[[0, 2], [0, 0]]])
    np.testing.assert_array_equal(numpy(attached_mask(y)), [[True, False]])
