"""`convert`: the same model with the other layer in it."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import images, layers_in, numpy, randomize, weights_of
from keras_bn.tools._copies.rebuild import Replacement, rebuild
from slow import slow

L = keras.layers
Norm = keras_bn.BatchNormalization


@keras.saving.register_keras_serializable("test_convert")
class Block(L.Layer):
    """Holds batch norms in an attribute, a list, a dictionary, a tuple and a model."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.norm = L.BatchNormalization(name="attribute")
        self.several = [L.BatchNormalization(name="listed"), L.Dense(units)]
        self.named = {"one": L.BatchNormalization(name="named")}
        self.pair = (L.Dense(units), L.BatchNormalization(name="paired"))
        self.again = self.norm
        self.inner = keras.Sequential([L.Dense(units), L.BatchNormalization()])

    def build(self, shape):
        for layer in (self.norm, *self.several, self.named["one"], *self.pair):
            layer.build(shape)
        self.inner.build(shape)

    def call(self, x):
        for layer in (self.norm, *self.several, self.named["one"], *self.pair):
            x = layer(x)
        return self.inner(self.again(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_convert")
class Builder(L.Layer):
    """Makes its layers in `build`, where many classes do, and one of them the same."""

    def __init__(self, units, depth=1, **kwargs):
        super().__init__(**kwargs)
        self.units, self.depth = units, depth
        self.norm = None

    def build(self, shape):
        self.dense = Builder(self.units, 0) if self.depth else L.Dense(self.units)
        self.norm = L.BatchNormalization(name="built")
        self.several = [L.BatchNormalization(name="built_too")]
        self.dense.build(shape)
        for layer in (self.norm, *self.several):
            layer.build((*shape[:-1], self.units))

    def call(self, x):
        return self.several[0](self.norm(self.dense(x)))

    def get_config(self):
        own = {"units": self.units, "depth": self.depth}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("test_convert")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = L.Dense(units)
        self.norm = L.BatchNormalization()

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_convert")
class Hidden(Subclassed):
    """Its batch norm is private."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self._private = L.BatchNormalization(name="private")

    def call(self, x, training=None):
        return self._private(super().call(x, training=training))


@keras.saving.register_keras_serializable("test_convert")
class Eager(keras.Model):
    """Its constructor builds its norm, and its `build` does not."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization(name="eager")
        self.norm.build((None, 6))

    def build(self, shape):
        self.built = True

    def call(self, x):
        return self.norm(x)


@keras.saving.register_keras_serializable("test_convert")
class Cell(L.Layer):
    """A recurrent cell with a batch norm inside."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.dense = L.Dense(units)
        self.norm = L.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((shape[0], self.units))

    def call(self, x, states, training=None):
        y = keras.ops.tanh(self.norm(self.dense(x), training=training) + states[0])
        return y, [y]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def _functional():
    inputs = keras.Input((6,), name="features")
    shared = L.BatchNormalization(name="shared", momentum=0.7)
    x = shared(L.Dense(6)(shared(inputs)))
    inner = keras.Sequential([L.Dense(6), L.BatchNormalization()], name="inner")
    x = inner(x) + inner(keras.ops.relu(x))
    x = L.Lambda(lambda t: 2 * t)(L.Dropout(0.5, seed=3)(x))
    return keras.Model(
        {"features": inputs}, {"out": x, "head": L.Dense(2)(x)}, name="m"
    )


def _sequential():
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(5), L.BatchNormalization(renorm=True), L.ReLU()]
    )


def _block():
    return keras.Sequential([keras.Input((6,)), Block(6)])


def _builder():
    return keras.Sequential([keras.Input((6,)), Builder(4)])


def _time_distributed():
    return keras.Sequential(
        [keras.Input((3, 2)), L.TimeDistributed(L.BatchNormalization(trainable=False))]
    )


def _bidirectional():
    return keras.Sequential([keras.Input((3, 2)), L.Bidirectional(L.RNN(Cell(4)))])


def _subclassed():
    model = Subclassed(4)
    model(images(2, 6))
    return model


def _eager():
    model = Eager()
    model.build((None, 6))
    return model


def _private():
    model = Hidden(4)
    model(images(2, 6))
    return model


def _nested_wrapper():
    inner = keras.Sequential([keras.Input((2,)), L.Dense(3), L.BatchNormalization()])
    return keras.Sequential([keras.Input((3, 2)), L.TimeDistributed(inner)])


MODELS = [
    (_functional, {"features": (6,)}, 2),
    (_sequential, (6,), 1),
    (_block, (6,), 5),
    (_builder, (6,), 4),
    (_time_distributed, (3, 2), 1),
    (_bidirectional, (3, 2), 2),
    (_subclassed, (6,), 1),
    (_eager, (6,), 1),
    (_private, (6,), 2),
    (_nested_wrapper, (3, 2), 1),
]


def _norms(model):
    layers = (one for one in layers_in(model) if hasattr(one, "moving_mean"))
    return list({id(one): one for one in layers}.values())


def _inputs(shape):
    if isinstance(shape, dict):
        return {name: images(4, *one) for name, one in shape.items()}
    return images(4, *shape)


# Copying is done in Keras's words; on the others one graph and one class.
QUICK = {"_functional", "_block"}
ON_TORCH = slow("models that JAX compiles op by op", but_on="torch")
PARAMETERS = [
    pytest.param(
        *one,
        id=one[0].__name__,
        marks=() if one[0].__name__ in QUICK else ON_TORCH,
    )
    for one in MODELS
]


@pytest.mark.parametrize(("build", "shape", "count"), PARAMETERS)
def test_there_and_back(build, shape, count):
    keras.utils.clear_session(free_memory=False)
    model = randomize(build())
    before = weights_of(model)
    ours = keras_bn.convert(model)
    back = keras_bn.convert(ours, to="keras")
    assert [type(one) for one in _norms(ours)] == [Norm] * count
    assert [type(one) for one in _norms(back)] == [L.BatchNormalization] * count
    assert [one.name for one in _norms(back)] == [one.name for one in _norms(model)]
    classes = [[type(one) for one in layers_in(m)] for m in (model, back)]
    assert classes[0] == classes[1]
    flags = [[one.trainable for one in layers_in(m)] for m in (model, ours, back)]
    assert flags[0] == flags[1] == flags[2]
    assert weights_of(model) == before
    assert weights_of(back) == before
    x = _inputs(shape)
    for old, new, same in zip(
        *(keras.tree.flatten(one(x)) for one in (model, ours, back)), strict=True
    ):
        np.testing.assert_array_equal(numpy(same), numpy(old))
        np.testing.assert_allclose(numpy(new), numpy(old), atol=2e-6)


@pytest.mark.parametrize(("build", "shape", "count"), PARAMETERS)
def test_what_was_put_in_is_there_after_loading(build, shape, count, tmp_path):
    """Also where the constructor makes Keras's layer, in each of four ways to copy."""
    keras.utils.clear_session(free_memory=False)
    model = randomize(build())
    ours = keras_bn.convert(model, momentum=0.5)
    kinds = [type(one) for one in layers_in(ours)]
    assert _shown(ours) == _shown(model)
    # Twice: a copy of what lasts.
    loaded = keras_bn.convert(_loaded(ours, tmp_path), momentum=0.5)
    assert [type(one) for one in layers_in(ours)] == kinds
    loaded = _loaded(loaded, tmp_path)
    loaded = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    norms = _norms(loaded)
    assert [(type(one), one.momentum) for one in norms] == [(Norm, 0.5)] * count
    assert weights_of(loaded) == weights_of(ours)
    x = _inputs(shape)
    for old, new in zip(
        *(keras.tree.flatten(one(x)) for one in (ours, loaded)), strict=True
    ):
        np.testing.assert_array_equal(numpy(new), numpy(old))


def _shown(model):
    """How Python shows the classes of its layers, but for batch norms."""
    names = ("__name__", "__module__", "__qualname__", "__doc__")
    return [
        [getattr(type(one), name) for name in names]
        for one in layers_in(model)
        if not hasattr(one, "moving_mean")
    ]


def _loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras", safe_mode=False)


@ON_TORCH
def test_what_was_put_in_before_stays(tmp_path):
    def with_another(model, name):
        new = Replacement(L.Rescaling(2.0, name=name))
        return rebuild(
            model,
            lambda layer: new if layer.name == name else None,
            lambda old, new: None,
        )

    model = _block()
    for name in ("attribute", "paired"):
        model = with_another(model, name)
    block = _loaded(model, tmp_path).layers[0]
    layers = (block.norm, *block.several, *block.named.values(), *block.pair)
    kinds = [L.Rescaling, L.BatchNormalization, L.Dense, L.BatchNormalization, L.Dense]
    assert [type(one) for one in layers] == [*kinds, L.Rescaling]
    assert block.again is block.norm


@keras.saving.register_keras_serializable("test_convert")
class Activated(L.Layer):
    """Has a function in its config."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = keras.activations.get(function)
        self.norm = L.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.function(self.norm(x))

    def get_config(self):
        return {**super().get_config(), "function": self.function}


@ON_TORCH
def test_of_a_lambda_in_the_config_nothing_is_said_until_it_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Activated(lambda x: 2 * x)])
    ours = keras_bn.convert(model)  # warnings are errors here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = _loaded(ours, tmp_path)
    assert type(loaded.layers[0].norm) is Norm


@keras.saving.register_keras_serializable("test_convert")
class Fickle(L.Layer):
    """Its next version makes no norm any more."""

    made = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization() if self.made else None

    def build(self, shape):
        if self.norm is not None:
            self.norm.build(shape)

    def call(self, x):
        return self.norm(x)


@ON_TORCH
def test_a_class_that_has_changed_since_is_an_error(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((3,)), Fickle(name="fickle")])
    keras_bn.convert(model).save(tmp_path / "model.keras")
    monkeypatch.setattr(Fickle, "made", False)
    message = r"'fickle' of class Fickle must make the layers that it had.*with \[\]"
    with pytest.raises(ValueError, match=message):
        keras.saving.load_model(tmp_path / "model.keras")


@ON_TORCH
def test_names_structure_and_sharing_are_kept():
    model = _functional()
    ours = keras_bn.convert(model)
    assert (ours.name, list(ours.output)) == (model.name, list(model.output))
    assert [layer.name for layer in ours.layers] == [
        layer.name for layer in model.layers
    ]
    assert [v.path for v in ours.weights] == [v.path for v in model.weights]
    assert ours.get_layer("shared").momentum == 0.7
    assert type(ours) is type(model)


@ON_TORCH
def test_flags_of_single_weights_are_kept():
    model = _sequential()
    model.layers[0].trainable = False
    model.layers[1].gamma.trainable = False
    ours = keras_bn.convert(model)
    assert [v.trainable for v in ours.weights] == [v.trainable for v in model.weights]


def test_training_goes_on_as_it_would_have():
    x, y = images(32, 6), images(32, 5, seed=1)
    model = _sequential()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    back = keras_bn.convert(keras_bn.convert(model), to="keras")
    assert [numpy(v).tolist() for v in back.optimizer.variables] == [
        numpy(v).tolist() for v in model.optimizer.variables
    ]
    histories = [
        one.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False).history
        for one in (model, back)
    ]
    for name in ("loss", "mae"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=1e-6)


@ON_TORCH
def test_an_optimizer_of_other_weights_starts_anew():
    x, y = images(8, 6), images(8, 5, seed=1)
    model = _sequential()
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    model.layers[1].gamma.assign(np.ones(5))
    with pytest.raises(UserWarning, match="starts anew"):  # warnings are errors here
        keras_bn.convert(model, scale=False)
    model.layers[0].trainable = False  # of which its optimizer does not know
    with pytest.raises(UserWarning, match="starts anew"):
        keras_bn.convert(model)


class Weighted(keras.metrics.Mean):
    """Has no `get_config`, so nothing can make another of it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight


@ON_TORCH
def test_a_metric_that_cannot_be_carried_is_left_with_a_warning():
    model = _sequential()
    model.compile("sgd", "mse", metrics=[Weighted(2.0)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = keras_bn.convert(model)
    assert any("could not be carried over" in str(one.message) for one in caught)
    assert not ours.compiled


def test_training_one_model_leaves_the_weights_of_the_other():
    x, y = images(32, 6), images(32, 5, seed=1)
    model = _sequential()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, verbose=0)
    ours = keras_bn.convert(model, renorm=True)
    before = weights_of(model)
    ours.fit(x, y, verbose=0)
    assert weights_of(model) == before
    model.fit(x, y, verbose=0)


@ON_TORCH
def test_a_converted_model_saves_and_loads(tmp_path):
    ours = keras_bn.convert(randomize(_sequential()))
    ours.save(tmp_path / "ours.keras")
    again = keras.saving.load_model(tmp_path / "ours.keras")
    assert type(again.layers[1]) is Norm
    np.testing.assert_array_equal(numpy(again(images(3, 6))), numpy(ours(images(3, 6))))


@ON_TORCH
@pytest.mark.parametrize("to", ["keras_bn", "keras"])
def test_nothing_to_convert_is_said(to):
    kind = Norm if to == "keras_bn" else L.BatchNormalization
    model = keras.Sequential([keras.Input((6,)), kind()])
    with pytest.raises(UserWarning, match="Nothing to convert in model"):
        keras_bn.convert(model, to=to)  # warnings are errors here


@ON_TORCH
def test_overrides_and_the_start_of_renorm():
    model = randomize(keras.Sequential([keras.Input((3,)), L.BatchNormalization()]))
    ours = keras_bn.convert(model, renorm=True, momentum=0.8).layers[0]
    norm = model.layers[0]
    assert (ours.renorm, ours.momentum) == (True, 0.8)
    stddev = np.sqrt(numpy(norm.moving_variance) + norm.epsilon)
    np.testing.assert_allclose(numpy(ours.renorm_stddev), stddev, rtol=1e-6)
    np.testing.assert_allclose(numpy(ours.moving_stddev), stddev, rtol=1e-6)
    np.testing.assert_array_equal(numpy(ours.renorm_mean), numpy(norm.moving_mean))


@ON_TORCH
@pytest.mark.parametrize(
    ("argument", "weight", "neutral"),
    [("scale", "gamma", 1.0), ("center", "beta", 0.0)],
)
def test_what_makes_no_difference_can_be_left_out(argument, weight, neutral):
    model = keras.Sequential([keras.Input((2,)), Norm(name="norm")])
    assert len(keras_bn.convert(model, **{argument: False}).weights) == 3
    getattr(model.layers[0], weight).assign([neutral, neutral + 0.1])
    with pytest.raises(ValueError, match=f"{weight} other than {neutral:g}.*lost"):
        keras_bn.convert(model, **{argument: False})


@ON_TORCH
def test_what_keras_has_not_is_an_error():
    model = keras.Sequential(
        [keras.Input((3,)), keras_bn.BatchNormalization(freeze_statistics=True)]
    )
    with pytest.raises(ValueError, match="no argument `freeze_statistics`"):
        keras_bn.convert(model, to="keras")


@ON_TORCH
def test_arguments_that_the_target_refuses_name_the_layer(monkeypatch):
    """Keras's layer refuses synchronized=True on all backends but TensorFlow."""
    layer = keras_bn.BatchNormalization(synchronized=True, name="norm")
    model = keras.Sequential([keras.Input((3,)), layer])

    def refuse(config):
        raise TypeError("synchronized=True is not supported here")

    monkeypatch.setattr(keras.layers.BatchNormalization, "from_config", refuse)
    with pytest.raises(ValueError, match=r"'norm' cannot be converted.*not supported"):
        keras_bn.convert(model, to="keras")


@ON_TORCH
def test_accumulated_moments_are_carried_and_start_empty():
    x = images(6, 3)
    model = keras.Sequential(
        [keras.Input((3,)), keras_bn.BatchNormalization(accumulation_steps=2)]
    )
    model(x, training=True)
    layer = keras_bn.convert(model, momentum=0.9).layers[0]
    assert float(layer.accumulated_steps) == 1
    np.testing.assert_array_equal(
        numpy(layer.accumulated_mean), numpy(model.layers[0].accumulated_mean)
    )
    plain = keras_bn.convert(model, accumulation_steps=1)
    fresh = keras_bn.convert(plain, accumulation_steps=3).layers[0]
    assert float(fresh.accumulated_steps) == 0


@ON_TORCH
def test_a_fused_activation_becomes_a_layer():
    model = randomize(
        keras.Sequential(
            [keras.Input((3,)), Norm(activation="relu", name="norm"), L.Dense(2)]
        )
    )
    back = keras_bn.convert(model, to="keras")
    assert [layer.name for layer in back.layers][:2] == ["norm", "norm_activation"]
    x = images(4, 3)
    np.testing.assert_allclose(numpy(back(x)), numpy(model(x)), atol=1e-6)
    inputs = keras.Input((3,))
    graph = keras.Model(inputs, model.layers[1](model.layers[0](inputs)))
    np.testing.assert_allclose(
        numpy(keras_bn.convert(graph, to="keras")(x)), numpy(model(x)), atol=1e-6
    )


@ON_TORCH
def test_residuals_become_sums_of_the_same_dtype():
    inputs = keras.Input((3,))
    norm = Norm(name="norm", dtype="mixed_float16")
    x = norm(norm(norm(inputs), residual=2 * inputs), residual=inputs)
    model = randomize(keras.Model(inputs, x))
    back = keras_bn.convert(model, to="keras")
    sums = [one for one in back.layers if isinstance(one, L.Add)]
    assert [one.name for one in sums] == ["norm_add", "norm_add_1"]
    assert {one.dtype_policy.name for one in sums} == {"mixed_float16"}
    x = images(4, 3)
    np.testing.assert_allclose(numpy(back(x)), numpy(model(x)), atol=0.01)


class Around(L.Layer):
    """Holds a model, and then a norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.Sequential([L.Dense(3)])
        self.norm = Norm(activation="relu")

    def build(self, shape):
        self.inner.build(shape)
        self.norm.build(shape)

    def call(self, x):
        return self.norm(self.inner(x))


@ON_TORCH
@pytest.mark.parametrize(
    "make", [lambda: L.TimeDistributed(Norm(activation="relu")), Around]
)
def test_a_fused_activation_inside_a_class_is_an_error(make):
    model = keras.Sequential([keras.Input((2, 3)), make()])
    with pytest.raises(ValueError, match=r"needs an activation layer after it"):
        keras_bn.convert(model, to="keras")


def _axes():
    return keras.Sequential([keras.Input((2, 3)), Norm(axis=(1, 2))])


def _quantized():
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), Norm()])
    model.layers[0].quantize("int8")
    return model


@ON_TORCH
@pytest.mark.parametrize(
    ("build", "arguments", "error", "message"),
    [
        (_sequential, {"to": "flax"}, ValueError, r"`to` must be one of .*'flax'"),
        (_sequential, {"to": ["keras"]}, ValueError, r"`to` must be one of .*to=\["),
        (_sequential, {"size": 3}, TypeError, r"`size` is not an argument .*size=3"),
        (_sequential, {"axis": 1}, TypeError, r"`axis` is not an argument"),
        (_sequential, {"momentum": 2}, ValueError, r"`momentum` must be .*momentum=2"),
        *(
            (
                _sequential,
                {"to": "keras", name: value},
                error,
                f"`{name}` must .*ed: ",
            )
            for name, value, error in (
                ("epsilon", -1, ValueError),
                ("epsilon", float("inf"), ValueError),
                ("epsilon", "1e-5", TypeError),
                ("momentum", 3, ValueError),
                ("momentum", None, TypeError),
                ("renorm_momentum", -1, ValueError),
                ("renorm_clipping", "x", TypeError),
                ("center", "no", TypeError),
                ("renorm", "x", TypeError),
            )
        ),
        (
            _sequential,
            {"to": "layer", "scale": "no"},
            TypeError,
            "`scale` must be T",
        ),
        (lambda: 3, {}, TypeError, r"`model` must be a Keras model.*int"),
        (lambda: keras.Sequential([Norm()]), {}, ValueError, r"`model` must be built"),
        (
            lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]),
            {},
            ValueError,
            r"`model` must have a batch normalization layer",
        ),
        (_quantized, {}, ValueError, r"must not be quantized.*'dense\w*'.*'int8'"),
        (_axes, {"to": "keras"}, ValueError, r"normalizes along one axis.*\(1, 2\)"),
        (
            lambda: randomize(_sequential()),
            {"scale": False},
            ValueError,
            r"`scale` must stay True.*gamma",
        ),
    ],
)
def test_bad_input(build, arguments, error, message):
    model = build()
    with pytest.raises(error, match=message):
        keras_bn.convert(model, **arguments)
