"""What the tools' copies take along, and that the model stays as it was."""

import inspect
import sys
import time
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from typing import NamedTuple

import keras
import numpy as np
import pytest

import keras_bn
from cases_copies import COPIES, Backbone, Helper, Hiding, Stack
from cases_tools import images, numpy, randomize
from keras_bn._keras import layer_of
from keras_bn.tools._copies.held import shown
from keras_bn.tools._copies.rebuild import Replacement, rebuild
from keras_bn.tools._graphs.walk import any_graph, children, sublayers
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


class Pair(NamedTuple):
    dense: object
    norm: object


@ON_TORCH
def test_an_attribute_is_the_first_of_the_layers_in_the_place_of_one():
    norm = keras_bn.BatchNormalization(activation="relu")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, norm(inputs, residual=inputs))
    model.norm, model.both, model.named = norm, (1, norm), Pair(1, norm)
    theirs = keras_bn.convert(model, to="keras")
    _, first, added, activation = theirs.layers
    assert type(first) is L.BatchNormalization
    assert theirs.norm is first
    assert theirs.both == (1, first, added, activation)
    assert theirs.named == Pair(1, first)


@pytest.mark.parametrize(
    ("of_model", "shared"),
    [
        (lambda dense: dense, "'dense'"),
        pytest.param(
            lambda dense: L.Rescaling(dense.bias), "dense/bias", marks=ON_TORCH
        ),
    ],
)
def test_a_copy_that_holds_something_of_the_model_is_refused(of_model, shared):
    model = keras.Sequential([keras.Input((4,)), L.Dense(4, name="dense")])
    dense = model.layers[0]
    new = Replacement(of_model(dense))
    with pytest.raises(ValueError, match=f"cannot be copied.*{shared}"):
        rebuild(
            model,
            lambda layer: new if layer is dense else None,
            lambda old, new: None,
        )


@ON_TORCH
def test_a_norm_that_is_called_by_keyword_is_left_out():
    inputs = keras.Input((4,))
    x = keras_bn.BatchNormalization()(training=False, inputs=L.Dense(3)(inputs))
    model = randomize(keras.Model(inputs, x))
    folded = keras_bn.fold(model)
    assert len(folded.layers) == 2
    np.testing.assert_allclose(_outputs(folded), _outputs(model), atol=1e-6)


@ON_TORCH
def test_what_follows_another_dtype_is_of_another_dtype():
    inputs = keras.Input((4,))
    x = keras.ops.tanh(keras.ops.relu(L.BatchNormalization()(inputs)))
    ours = keras_bn.convert(keras.Model(inputs, [x, inputs + 1]), dtype="float16")
    assert [one.dtype for one in ours.outputs] == ["float16", "float32"]


@ON_TORCH
def test_a_model_may_be_deeper_than_pythons_stack():
    relu, inputs = L.ReLU(), keras.Input((4,))
    x = L.BatchNormalization()(inputs)
    for _ in range(sys.getrecursionlimit() // 2):
        x = relu(x)
    keras_bn.convert(keras.Model(inputs, x))


@ON_TORCH
def test_graphs_that_share_calls_still_do():
    model = next(one for one in COPIES if one.name == "two models").build()
    ours = keras_bn.convert(model)
    assert keras.Model(ours.whole.input, ours.middle).output is ours.features.output
    calls = [
        [len(one._inbound_nodes) for _, one in sublayers(m)] for m in (ours, model)
    ]
    assert calls[0] == calls[1]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own names")
def test_pytorch_knows_the_weights_of_a_copy():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization()])
    assert list(keras_bn.convert(model).state_dict()) == list(model.state_dict())


@ON_TORCH
@pytest.mark.parametrize(
    "tool", [keras_bn.convert, lambda model: keras_bn.inspect(model, images(8, 4))]
)
def test_a_bar_comes_to_its_end(tool, monkeypatch):
    bars = []
    monkeypatch.setattr(Progress, "__enter__", lambda bar: bars.append(bar) or bar)
    case = next(one for one in COPIES if one.name == "class of its own")
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


class WithoutNorms(keras.Sequential):
    def __init__(self):
        super().__init__([keras.Input((4,)), L.Dense(3)])


@ON_TORCH
def test_a_model_without_norms_stays_what_it_is():
    model = keras.Sequential(
        [keras.Input((4,)), WithoutNorms(), L.BatchNormalization()]
    )
    ours = keras_bn.convert(model)  # warnings are errors here
    assert type(ours.layers[0]) is WithoutNorms


class Hidden(L.Layer):
    """Has a norm where a place has no name."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization()
        self.unordered = {L.BatchNormalization(name="inside"), L.Dense(4)}

    def build(self, shape):
        for layer in (self.norm, *self.unordered):
            layer.build(shape)

    def call(self, x):
        for layer in (self.norm, *self.unordered):
            x = layer(x)
        return x


@ON_TORCH
def test_a_place_that_no_file_can_name_is_warned_of():
    model = keras.Sequential([keras.Input((4,)), Hidden(name="it")])
    message = r"^In layer 'it' of class Hidden, \['inside'\] stand in no attribute, nor"
    with pytest.raises(UserWarning, match=message):  # warnings are errors here
        keras_bn.convert(model)


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
    dense.helper = Helper(dense.kernel.value)
    copy = keras_bn.convert(model).layers[0]
    assert copy.kept["kernel"] is copy.helper.layer is copy.kernel.value
    assert copy.kernel.value is not dense.kernel.value


def test_a_place_is_shown_as_in_python():
    assert shown(("blocks", 1, "norm")) == "blocks[1]['norm']"


def test_what_a_model_has_called_stays_its_own():
    inputs = keras.Input((4,))
    first, norm = L.Dense(3, name="first"), L.BatchNormalization()
    model = keras.Model(inputs, norm(first(inputs)))
    keras_bn.convert(model)
    assert layer_of(model.input) is model.layers[0]
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


class Tuples(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pair = (L.Dense(2), L.BatchNormalization())
        self.named = Pair(L.Dense(2), L.BatchNormalization())

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
        assert (one.pair.__class__, one.named.__class__) == (tuple, Pair)
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


def _with_helper():
    """A model, and an object in it: Keras makes containers of its own of a layer's."""
    model = keras.Sequential([keras.Input((4,)), Hiding("helper")])
    return model, model.layers[0].run


@ON_TORCH
def test_a_variable_is_copied_with_all_that_is_said_of_it():
    layer = L.Dense(3, kernel_regularizer="l2", kernel_constraint="non_neg")
    layer.given = keras.Variable(
        *(np.arange(3), (3,), "int32"),
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
        synchronization="on_read",
        name="given",
    )
    layer.given.overwrite_with_gradient = True
    model = keras.Sequential([keras.Input((4,)), layer, L.BatchNormalization()])
    copy = keras_bn.convert(model).layers[0]
    for name in ("given", "kernel", "bias"):
        old, new = getattr(layer, name), getattr(copy, name)
        for said in (
            *("name", "path", "shape", "dtype", "trainable", "_autocast"),
            *("aggregation", "synchronization", "overwrite_with_gradient"),
            *("regularizer", "constraint"),
        ):
            assert getattr(new, said) == getattr(old, said), said
        np.testing.assert_array_equal(numpy(new), numpy(old))


@ON_TORCH
def test_containers_are_copied_with_the_layers_in_them():
    model, helper = _with_helper()
    dense = helper.layer
    helper.last = deque([dense, 1], maxlen=3)
    helper.known = defaultdict(lambda: dense, {dense: dense})
    helper.ordered = OrderedDict(dense=dense)
    helper.named, helper.every = Pair(dense, 1), {dense}
    helper.values, helper.tensor = np.zeros(3), keras.ops.zeros(3)
    ours = _quietly(keras_bn.convert, model).layers[0].run
    assert ours.layer is not dense
    assert (list(ours.last), ours.last.maxlen) == ([ours.layer, 1], 3)
    assert ours.known == {ours.layer: ours.layer}
    assert ours.known["other"] is ours.layer
    assert list(ours.ordered.items()) == [("dense", ours.layer)]
    assert (ours.named, ours.every) == (Pair(ours.layer, 1), {ours.layer})
    ours.values += 1
    ours.tensor += 1  # in place, where tensors can be written into
    assert not helper.values.any()
    assert not numpy(helper.tensor).any()
    assert numpy(ours.tensor).all()


@ON_TORCH
def test_weak_references_are_to_what_is_in_the_copy():
    model, helper = _with_helper()
    helper.model, helper.itself = weakref.ref(model), weakref.ref(helper)
    helper.way = weakref.WeakMethod(helper.layer.call)
    copy = _quietly(keras_bn.convert, model)
    ours = copy.layers[0].run
    assert (ours.model(), ours.itself()) == (copy, ours)
    assert ours.way() == ours.layer.call


@ON_TORCH
def test_a_function_is_copied_once_with_all_that_it_has():
    model, helper = _with_helper()
    dense, seen = helper.layer, []

    def run(x: float, again=True):
        """Calls itself."""
        seen.append(x)
        return run(x, False) if again else dense(x)

    run.note = "kept"
    helper.first = helper.second = run
    ours = _quietly(keras_bn.convert, model).layers[0].run
    assert ours.first is ours.second is not run
    inside = inspect.getclosurevars(ours.first).nonlocals
    assert inside["run"] is ours.first
    assert inside["dense"] is ours.layer
    assert inside["seen"] is seen  # the user's own
    kept = ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__")
    for name in (*kept, "note"):
        assert getattr(ours.first, name) == getattr(run, name)


@ON_TORCH
def test_what_has_nothing_of_the_model_is_shared():
    model, helper = _with_helper()
    other = L.Dense(2)
    helper.other, helper.method, helper.when = Helper(3), other.call, time.gmtime(0)
    helper.weak, helper.iterator = weakref.ref(other, print), iter([other])
    ours = _quietly(keras_bn.convert, model).layers[0].run
    for name in ("other", "method", "when", "weak", "iterator"):
        assert getattr(ours, name) is getattr(helper, name)


class Holding(L.Layer):
    """Holds layers in each of the containers that Keras tracks."""

    def __init__(self):
        super().__init__()
        self.listed, self.every = [L.Dense(4)], {L.Dense(4)}
        self.named, self.ordered = {"a": L.Dense(4)}, OrderedDict(a=L.Dense(4))

    def build(self, shape):
        self.built = True

    def call(self, x):
        return x


@ON_TORCH
def test_what_is_taken_out_of_a_copys_containers_is_gone_from_the_copy():
    norm = L.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), Holding(), norm])
    ours = keras_bn.convert(model).layers[0]
    for one in (ours.listed.pop, ours.every.pop):
        one()
    for one in (ours.named, ours.ordered):
        one.pop("a")
    assert (len(children(ours)), len(children(model.layers[0]))) == (0, 4)


@ON_TORCH
def test_what_is_made_by_the_way_uses_up_no_name():
    keras.utils.clear_session(free_memory=False)
    any_graph.cache_clear()
    any_graph()
    x = keras.Input((1,), name="given")
    keras_bn.convert(keras.Model(x, L.BatchNormalization()(x), name="net"))
    x = keras.Input((1,))
    made = layer_of(x), keras.Model(x, x), keras.Model()
    assert [one.name for one in made] == ["input_layer", "functional", "model"]
