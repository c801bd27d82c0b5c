"""What the tools' copies take along, and that the model stays as it was."""

import warnings
from collections import OrderedDict, defaultdict, deque
from typing import NamedTuple

import keras
import numpy as np
import pytest

import keras_bn
from cases_copies import COPIES, Backbone, Hiding, Stack
from cases_tools import images, numpy, randomize
from keras_bn._keras import layer_of
from keras_bn.tools._copies.held import shown
from keras_bn.tools._copies.rebuild import Replacement, rebuild
from keras_bn.tools._graphs.walk import any_graph, sublayers
from keras_bn.tools._reports.progress import Progress
from slow import slow

L = keras.layers
GOOD = [case for case in COPIES if case.error is None]
BAD = [case for case in COPIES if case.error is not None]
# What is copied are Python's objects; on every backend a variable, and graphs, that
# something else holds.
QUICK = {"variable in the config", "two models"}
ON_TORCH = slow("models that JAX runs op by op", but_on="torch")


def _built(case):
    keras.utils.clear_session(free_memory=False)
    model = case.build()
    if type(model).compile is keras.Model.compile:
        model.compile("adam", "mse", metrics=["mae"])
    return randomize(model)


def _state(model):
    """Everything there is to see of a model, in its order."""
    everything = [("", model), *sublayers(model)]
    return [
        [
            (path, id(one), one.name, one.trainable, one.built, one._tracker.locked)
            for path, one in everything
        ],
        [
            {name: id(value) for name, value in vars(one).items()}
            for _, one in everything
        ],
        [
            {
                name: list(map(id, store))
                for name, (_, store) in one._tracker.config.items()
            }
            for _, one in everything
        ],
        [
            (v.path, id(v), id(v.value), v.trainable, numpy(v).tobytes())
            for v in (*model.variables, *model.optimizer.variables)
        ],
        [len(one._inbound_nodes) + len(one._outbound_nodes) for _, one in everything],
    ]


def _outputs(model):
    flat = keras.tree.flatten(model(images(3, 4), training=False))
    return np.concatenate([numpy(one).ravel() for one in flat])


def _quietly(tool, *arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what a file will hold
        return tool(*arguments, **settings)


def _with_messages(tool, model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = tool(model)
    return result, " ".join(str(one.message) for one in caught)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else ON_TORCH)
        for case in GOOD
    ],
)
def test_copies_compute_the_same_and_hold_nothing_of_the_model(case):
    model = _built(case)
    expected, before = _outputs(model), _state(model)
    ours = _quietly(keras_bn.convert, model)
    back = _quietly(keras_bn.convert, ours, to="keras")
    assert _state(model) == before
    norms = [
        one
        for _, one in sublayers(ours)
        if isinstance(one, keras_bn.BatchNormalization)
    ]
    assert len(norms) == case.norms
    pairs = zip(sublayers(model), sublayers(ours), strict=False)
    for (_, old), (_, new) in pairs:
        assert type(getattr(new, "run", None)) is type(getattr(old, "run", None))
    assert [v.path for v in ours.variables] == [v.path for v in model.variables]
    np.testing.assert_array_equal(_outputs(back), expected)
    np.testing.assert_allclose(_outputs(ours), expected, atol=2e-6)
    # Nothing that is done to the copy comes to the model.
    for one in (ours, back):
        randomize(one, seed=1)
        one.trainable = False
    assert _state(model) == before
    np.testing.assert_array_equal(_outputs(model), expected)
    after = _outputs(back)
    assert not np.array_equal(after, expected)
    # Nor does the copy compute with anything of the model.
    randomize(model, seed=2)
    np.testing.assert_array_equal(_outputs(back), after)


@ON_TORCH
@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_what_cannot_be_copied_is_named_and_the_model_untouched(case):
    model = _built(case)
    before = _state(model)
    with pytest.raises(ValueError, match=case.error):
        keras_bn.convert(model)
    assert _state(model) == before


@ON_TORCH
def test_functions_are_the_users_own_in_folded_layers():
    case = next(one for one in COPIES if one.name == "activations")
    model = _built(case)
    expected, before = _outputs(model), _state(model)
    folded = keras_bn.fold(model)
    first, second = [one for one in folded.layers if isinstance(one, L.Dense)]
    assert first.activation is model.layers[0].activation
    assert second.kernel_regularizer is model.layers[2].kernel_regularizer
    np.testing.assert_allclose(_outputs(folded), expected, atol=2e-6)
    assert _state(model) == before


@ON_TORCH
def test_a_backbone_keeps_its_class_and_a_file_holds_the_graph(tmp_path):
    model = randomize(Backbone(3))
    folded, messages = _with_messages(keras_bn.fold, model)
    assert "of class Backbone" in messages
    assert "a saved file holds a plain keras.Functional" in messages
    assert isinstance(folded, Backbone)
    assert folded.widths() == (3, 3)
    assert folded.norm is None
    assert folded.dense is folded.layers[1] is not model.dense
    levels = keras.Model(folded.input, folded.levels)(images(3, 4))
    expected = keras.Model(model.input, model.levels)(images(3, 4))
    for name in levels:
        np.testing.assert_allclose(
            numpy(levels[name]), numpy(expected[name]), atol=1e-5
        )
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    assert not isinstance(loaded, Backbone)
    np.testing.assert_array_equal(_outputs(loaded), _outputs(folded))


@ON_TORCH
def test_an_attribute_is_the_first_of_the_layers_in_the_place_of_one():
    norm = keras_bn.BatchNormalization(activation="relu")
    model = keras.Model(inputs := keras.Input((4,)), norm(inputs))
    model.norm = norm
    theirs = keras_bn.convert(model, to="keras")
    assert type(theirs.norm) is L.BatchNormalization
    assert theirs.norm is theirs.layers[1]


def test_a_copy_that_holds_a_layer_of_the_model_is_refused():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="dense")])
    itself = Replacement(model.layers[0])
    with pytest.raises(ValueError, match=r"cannot be copied.*'dense'"):
        rebuild(
            model,
            lambda layer: itself if layer is itself.layer else None,
            lambda old, new: None,
        )


@ON_TORCH
@pytest.mark.parametrize(
    "tool", [keras_bn.convert, lambda model: keras_bn.inspect(model, images(8, 4))]
)
def test_a_bar_comes_to_its_end(tool, monkeypatch):
    bars = []
    monkeypatch.setattr(Progress, "__enter__", lambda bar: bars.append(bar) or bar)
    case = next(one for one in COPIES if one.name == "activations")
    _quietly(tool, _built(case))
    assert bars
    assert all(bar._done >= bar._total > 0 for bar in bars)


@ON_TORCH
def test_a_sequential_of_a_class_of_its_own_too(tmp_path):
    model = randomize(Stack(3))
    ours, messages = _with_messages(keras_bn.convert, model)
    assert "a saved file holds a plain keras.Sequential" in messages
    assert (type(ours).__mro__[1], ours.units) == (Stack, 3)
    ours.save(tmp_path / "ours.keras")
    loaded = keras.saving.load_model(tmp_path / "ours.keras")
    assert type(loaded) is keras.Sequential
    np.testing.assert_array_equal(_outputs(loaded), _outputs(ours))


@ON_TORCH
def test_losses_are_the_users_own():
    factor = 2.0
    model = keras.Sequential([keras.Input((4,)), L.BatchNormalization()])
    model.compile("sgd", lambda y, p: factor * keras.ops.mean((y - p) ** 2))
    x = images(8, 4)
    ours = keras_bn.convert(model)
    assert ours.evaluate(x, x + 1, verbose=0) == pytest.approx(
        model.evaluate(x, x + 1, verbose=0)
    )


@ON_TORCH
def _of_torch(model):
    state = {name: np.ones(3) for name in ("bn.running_mean", "bn.running_var")}
    return keras_bn.from_torch(model, state, epsilon=1e-5)


@pytest.mark.parametrize("tool", [keras_bn.fold, keras_bn.quantize_aware, _of_torch])
def test_an_optimizer_starts_anew_where_weights_are_others(tool):
    layers = [L.Dense(3, use_bias=False), keras_bn.BatchNormalization(name="bn")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    copy = tool(model)
    assert copy.compiled
    assert (int(model.optimizer.iterations), int(copy.optimizer.iterations)) == (7, 0)


def test_a_tensor_of_a_variable_becomes_that_of_its_copy():
    dense = L.Dense(3)
    model = keras.Sequential([keras.Input((4,)), dense, L.BatchNormalization()])
    dense.kept = {"kernel": dense.kernel.value}
    copy = keras_bn.convert(model).layers[0]
    assert copy.kept["kernel"] is copy.kernel.value
    assert copy.kernel.value is not dense.kernel.value


def test_a_place_is_shown_as_in_python():
    assert shown(("blocks", 1, "norm")) == "blocks[1]['norm']"


def test_what_a_model_has_called_stays_its_own():
    inputs = keras.Input((4,))
    first, norm = L.Dense(3, name="first"), L.BatchNormalization()
    model = keras.Model(inputs, norm(first(inputs)))
    keras_bn.convert(model)
    assert layer_of(first.output) is first
    assert layer_of(model.output) is norm
    x = images(2, 4)
    within = keras.Model(model.input, first.output)  # as one takes features out
    np.testing.assert_array_equal(numpy(within(x)), numpy(first(x)))


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_metrics_may_hold_functions_without_a_name():
    model = keras.Sequential([keras.Input((4,)), L.BatchNormalization()])
    metric = keras.metrics.MeanMetricWrapper(lambda y, p: (y - p) ** 2, name="m")
    model.compile("sgd", "mse", metrics=[metric])
    x = images(8, 4)
    loss, squares = keras_bn.convert(model).evaluate(x, x + 1, verbose=0)
    assert squares == pytest.approx(loss) == pytest.approx(1, abs=0.2)


class Two(NamedTuple):
    dense: object
    norm: object


class Tuples(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = (L.Dense(2), L.BatchNormalization())
        self.named = Two(L.Dense(2), L.BatchNormalization())

    def call(self, x):
        for layer in (*self.pair, *self.named):
            x = layer(x)
        return x


def test_tuples_of_layers_stay_tuples(tmp_path):
    class Local(Tuples):  # which no import finds
        pass

    model = Local()
    model(images(2, 3))
    ours = keras_bn.convert(model)
    ours.save(tmp_path / "ours.keras")
    classes = {"Local": Local}
    loaded = keras.saving.load_model(tmp_path / "ours.keras", custom_objects=classes)
    for one in (ours, loaded):
        # TensorFlow puts what it tracks into a wrapper, which says to be a tuple.
        assert (one.pair.__class__, one.named.__class__) == (tuple, Two)
        norms = {type(one.pair[1]), type(one.named.norm)}
        assert norms == {keras_bn.BatchNormalization}


@ON_TORCH
def test_a_copy_lets_go_of_weights_as_the_model_does():
    """`quantize` replaces the kernel, which a layer then must not count any more."""
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization()])
    ours = keras_bn.convert(model)
    for one in (ours, model):
        one.layers[0].quantize("int8")
    copied, original = ([v.name for v in m.layers[0].weights] for m in (ours, model))
    assert copied == original


@ON_TORCH
def test_containers_are_copied_with_the_layers_in_them():
    model = keras.Sequential([keras.Input((4,)), Hiding("helper")])
    helper = model.layers[0].run  # Keras would make containers of its own of a layer's
    dense = helper.layer
    helper.last = deque([dense, 1], maxlen=3)
    helper.known = defaultdict(list, dense=dense)
    helper.ordered = OrderedDict(dense=dense)
    helper.every, helper.values = {dense}, np.zeros(3)
    ours = _quietly(keras_bn.convert, model).layers[0].run
    assert ours.layer is not dense
    assert (list(ours.last), ours.last.maxlen) == ([ours.layer, 1], 3)
    assert (ours.known, ours.known.default_factory) == ({"dense": ours.layer}, list)
    assert ours.ordered == OrderedDict(dense=ours.layer)
    assert ours.every == {ours.layer}
    ours.values += 1
    assert not helper.values.any()


@ON_TORCH
def test_what_is_made_by_the_way_uses_up_no_name():
    keras.utils.clear_session(free_memory=False)
    any_graph.cache_clear()
    any_graph()
    x = keras.Input((1,))
    assert (layer_of(x).name, keras.Model(x, x).name) == ("input_layer", "functional")
