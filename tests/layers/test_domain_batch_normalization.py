"""Statistics, and gamma and beta, for each domain."""

import keras
import numpy as np
import pytest

import cases
import frameworks
import keras_bn
import oracle
from keras_bn.ops import _rows
from slow import slow

BACKEND = keras.backend.backend()
DOMAINS = 3
ON_TORCH = slow("layers that JAX runs op by op", but_on="torch")


def random(shape, mean=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 2, shape).astype("float32")


def built(shape, **settings):
    """A layer whose weights are unlike each other, and those of its domains."""
    layer = keras_bn.DomainBatchNormalization(
        DOMAINS, **{"momentum": 0.5, "epsilon": 1e-2, **settings}
    )
    layer.build(shape)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return layer


def values(layer):
    return {w.name: frameworks.numpy(w).astype("float64") for w in layer.weights}


def stepped(layer, x, dy, domain, mask=None):
    """Output, new statistics by name, gradients by name; the layer is as it was."""
    fixed = [v.value for v in layer.non_trainable_variables]
    traced = not isinstance(domain, int)
    extra = {"domain": frameworks.tensor(domain)} if traced else {}

    def function(x, *trainable):
        given = extra if traced else {"domain": domain}
        y, updated = layer.stateless_call(
            list(trainable), fixed, x, training=True, mask=mask, **given
        )
        return y, updated

    tensors = [frameworks.tensor(x), *(v.value for v in layer.trainable_variables)]
    y, updated, slopes = frameworks.gradients(function, tensors, frameworks.tensor(dy))
    names = [v.name for v in layer.non_trainable_variables]
    updated = dict(zip(names, map(frameworks.numpy, updated), strict=True))
    names = ["x", *(v.name for v in layer.trainable_variables)]
    return y, updated, dict(zip(names, slopes, strict=True))


def expected(layer, x, dy, domains, axis, mask_weight):
    """The same in float64: each domain's samples as a batch of their own."""
    before = values(layer)
    y = np.zeros(x.shape)
    slopes = {"x": np.zeros(x.shape)}
    slopes |= {name: np.zeros(before[name].shape) for name in ("gamma", "beta")}
    statistics = {n: before[n].copy() for n in ("moving_mean", "moving_variance")}
    for number in np.unique(domains):
        here = (domains == number).reshape(-1, *[1] * (x.ndim - 1))
        row = slice(None) if layer.share_affine else number
        shape = before["gamma"][row].shape
        gamma, beta = (
            oracle.spread(before[n][row], x, axis) for n in slopes if n != "x"
        )
        settings = {"axis": axis, "epsilon": 1e-2, "weight": mask_weight * here}
        result = oracle.forward(x, gamma, beta, **settings)
        back = oracle.backward(x, dy * here, gamma, **settings)
        y = np.where(here, result.y, y)
        slopes["x"] += back.x
        slopes["gamma"][row] += back.gamma.reshape(shape)
        slopes["beta"][row] += back.beta.reshape(shape)
        for name, one in zip(statistics, (result.mean, result.variance), strict=True):
            new = statistics[name][number] / 2 + one.reshape(shape) / 2
            counted = (result.count > 0).all()
            statistics[name][number] = new if counted else statistics[name][number]
    return y, statistics, slopes


SETTINGS = {
    "one, known": ("dense", 2, {}),
    "one, traced": ("image", np.int32(2), {}),
    "a sample": ("dense", np.array([2, 0, 2, 2, 0, 2], "int32"), {}),
    "a sample, channels first": ("first_image", np.array([2, 0, 2], "int32"), {}),
    "a sample, two axes": ("two_axes", np.array([0, 1, 1, 2, 1], "int32"), {}),
    "a sample, masked, shared": (
        "mask_image",
        np.array([2, 1, 2], "int32"),
        {"share_affine": True},
    ),
}


QUICK = {"one, traced", "a sample, two axes", "a sample, masked, shared"}


@pytest.mark.parametrize(
    ("name", "domain", "given"),
    [
        pytest.param(*one, id=name, marks=() if name in QUICK else ON_TORCH)
        for name, one in SETTINGS.items()
    ],
)
def test_equals_oracle(name, domain, given):
    case = cases.ALL[name]
    layer = built(case.shape, axis=case.axis, **given)
    x, dy = random(case.shape), random(case.shape, seed=2)
    mask = None if case.mask is None else random(case.mask, seed=3) > 1
    received = stepped(layer, x, dy, domain, mask)
    weight = oracle.weights(mask, x, case.axis)
    whole = np.broadcast_to(domain, x.shape[:1])
    wanted = expected(layer, x, dy, whole, case.axis, weight)
    np.testing.assert_allclose(received[0], wanted[0], atol=2e-5)
    for got, exact in zip(received[1:], wanted[1:], strict=True):
        assert got.keys() == exact.keys()
        for key in exact:
            np.testing.assert_allclose(got[key], exact[key], rtol=1e-4, atol=1e-4)
    # Those of domains that were not there are the same bits.
    absent = [d for d in range(DOMAINS) if d not in whole]
    for key, before in values(layer).items():
        if key in received[1]:
            np.testing.assert_array_equal(received[1][key][absent], before[absent])


ALIKE = [
    pytest.param({"renorm": True, "renorm_momentum": 0.5}, id="renorm"),
    pytest.param({"dtype": "mixed_bfloat16"}, id="bfloat16"),
    pytest.param({}, id="plain", marks=ON_TORCH),
    pytest.param({"activation": "relu"}, id="activation", marks=ON_TORCH),
    pytest.param({"accumulation_steps": 2}, id="accumulation", marks=ON_TORCH),
]


@pytest.mark.parametrize("settings", ALIKE)
def test_is_a_plain_layer_for_each_domain(settings):
    """Outputs and every statistic, after calls of one domain and of the other."""
    layer = built((None, 4), **settings)
    alone = [layer.domain_layer(number) for number in range(DOMAINS)]
    for step, number in enumerate((2, 0, 2, 2, 0)):
        x = random((6, 4), mean=number, seed=step)
        for training in (True, False):
            y = layer(x, domain=number, training=training)
            wanted = alone[number](x, training=training)
            np.testing.assert_array_equal(frameworks.numpy(y), frameworks.numpy(wanted))
    for number, one in enumerate(alone):
        np.testing.assert_equal(values(layer.domain_layer(number)), values(one))


def test_inference_takes_each_sample_by_its_domain():
    layer, x = built((None, 4)), random((6, 4))
    domains = np.array([2, 0, 1, 1, 2, 0], "int32")
    alone = [frameworks.numpy(layer(x, domain=d)) for d in range(DOMAINS)]
    wanted = np.stack([alone[d][i] for i, d in enumerate(domains)])
    y = layer(x, domain=frameworks.tensor(domains))
    np.testing.assert_array_equal(frameworks.numpy(y), wanted)


def compiled(layer, x):
    """`call(domain)` of a training step, and a list that grows at each trace."""
    traces = []

    def call(x, domain):
        traces.append(1)
        return layer(x, domain=domain, training=True)

    def pure(trainable, fixed, x, domain):
        traces.append(1)
        given = {"domain": domain, "training": True}
        return layer.stateless_call(trainable, fixed, x, **given)

    run = frameworks.compiled(pure if BACKEND == "jax" else call)

    def in_numpy(domain):
        given = [frameworks.tensor(x), frameworks.tensor(np.int32(domain))]
        if BACKEND != "jax":
            return frameworks.numpy(run(*given))
        variables = (layer.trainable_variables, layer.non_trainable_variables)
        y, fixed = run(*([v.value for v in some] for some in variables), *given)
        for variable, value in zip(variables[1], fixed, strict=True):
            variable.assign(value)
        return frameworks.numpy(y)

    return in_numpy, traces


@pytest.mark.skipif(
    BACKEND == "torch",
    reason="torch.compile of a layer's call takes half a minute: see ops/test_rows.py",
)
def test_a_graph_takes_any_domain_and_gives_nan_for_one_out_of_range():
    """Never a plausible output, and no statistic moves; traced once for all of them."""
    layer, twin = (built((None, 3), activation="relu") for _ in range(2))
    x = random((2, 3))
    call, traces = compiled(layer, x)
    for domain in (2, 0):
        wanted = twin(x, domain=domain, training=True)
        np.testing.assert_allclose(call(domain), frameworks.numpy(wanted), rtol=1e-5)
    before = values(layer)
    for name, value in values(twin).items():
        np.testing.assert_allclose(before[name], value, rtol=1e-5)
    for domain in (DOMAINS, -1):
        assert np.isnan(call(domain)).all()
        np.testing.assert_equal(values(layer), before)
    assert len(traces) == 1


UNSEEN = {
    "one": np.array(DOMAINS, "int32"),
    "one, negative": np.array(-1, "int32"),
    "a sample": np.array([DOMAINS, -1], "int32"),
}


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"scale": False, "center": False}, marks=ON_TORCH)],
    ids=str,
)
@pytest.mark.parametrize("domain", UNSEEN.values(), ids=UNSEEN)
def test_where_nobody_looks_a_domain_out_of_range_is_nan(domain, settings, monkeypatch):
    monkeypatch.setattr(_rows, "readable", lambda x: False)
    layer = built((None, 3), activation="relu", **settings)
    before = values(layer)
    for training in (True, False):
        y = layer(random((2, 3)), domain=frameworks.tensor(domain), training=training)
        assert np.isnan(frameworks.numpy(y)).all()
    np.testing.assert_equal(values(layer), before)


def test_a_nan_stays_in_its_domain():
    layer = built((None, 3))
    x = random((4, 3))
    x[1, 2] = np.nan
    domains = np.array([0, 1, 0, 1])
    before = values(layer)
    y = frameworks.numpy(layer(x, domain=domains, training=True))
    assert np.isfinite(y[domains == 0]).all()
    after = values(layer)
    assert after["moving_mean"][1, 2] == before["moving_mean"][1, 2]
    assert (after["moving_mean"][0] != before["moving_mean"][0]).all()


def test_an_empty_batch_moves_nothing():
    layer = built((None, 3))
    before = values(layer)
    for domain in (1, np.zeros(0, "int32")):
        y = layer(np.zeros((0, 3), "float32"), domain=domain, training=True)
        assert tuple(y.shape) == (0, 3)
    np.testing.assert_equal(values(layer), before)


@pytest.mark.parametrize("domain", [1, np.int64(1), np.array([1, 1])], ids=str)
def test_the_mask_that_keras_attaches_is_used(domain):
    """Keras hands masks on only to calls of one single tensor."""
    x = keras.layers.Masking()(np.array([[[1.0], [3.0]], [[0.0], [5.0]]], "float32"))
    layer = keras_bn.DomainBatchNormalization(2, momentum=0.0)
    layer(x, domain=domain, training=True)
    np.testing.assert_allclose(frameworks.numpy(layer.moving_mean), [[0.0], [3.0]])


FROZEN = {"layer": {"trainable": False}, "statistics": {"freeze_statistics": True}}


@pytest.mark.parametrize("settings", FROZEN.values(), ids=FROZEN)
def test_frozen_it_trains_by_the_moving_statistics(settings):
    layer, x = built((None, 3), **settings), random((4, 3))
    before = values(layer)
    for domain in (1, np.array([0, 1, 1, 2])):
        y, wanted = (layer(x, domain=domain, training=t) for t in (True, False))
        np.testing.assert_array_equal(frameworks.numpy(y), frameworks.numpy(wanted))
    np.testing.assert_equal(values(layer), before)


def test_a_functional_model_trains_and_is_saved(tmp_path):
    x, domains = random((12, 4), seed=1), np.arange(12) % 2
    inputs = [keras.Input((4,)), keras.Input((), dtype="int32", name="domain")]
    norm = keras_bn.DomainBatchNormalization(
        2, momentum=0.5, share_affine=True, activation="relu", name="norm"
    )
    model = keras.Model(inputs, keras.layers.Dense(1)(norm(*inputs)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit([x, domains], x[:, :1], batch_size=12, verbose=0)
    for number in range(2):
        wanted = x[domains == number].mean(0) / 2
        received = frameworks.numpy(norm.moving_mean)[number]
        np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("norm").get_config() == norm.get_config()
    np.testing.assert_array_equal(
        loaded.predict_on_batch([x, domains]), model.predict_on_batch([x, domains])
    )


def test_a_domain_is_taken_out_as_a_plain_layer():
    layer, x = built((None, 4), renorm=True), random((6, 4))
    layer.beta.trainable = False
    one = layer.domain_layer(1)
    assert type(one) is keras_bn.BatchNormalization
    assert one.built
    assert one.name == layer.name
    assert not one.beta.trainable
    np.testing.assert_array_equal(
        frameworks.numpy(one(x)), frameworks.numpy(layer(x, domain=1))
    )
    # Its weights are its own.
    one(x, training=True)
    assert np.any(frameworks.numpy(one.moving_mean) != values(layer)["moving_mean"][1])


@pytest.mark.usefixtures("float64")
def test_domains_start_alike_whatever_draws_them():
    uniform = keras.initializers.RandomUniform(1.0, 2.0)
    layer = keras_bn.DomainBatchNormalization(
        domains=2,
        dtype="float64",
        gamma_initializer=uniform,
        moving_variance_initializer=uniform,
    )
    layer.build((None, 8))
    for weight in (layer.gamma, layer.moving_variance):
        one, other = frameworks.numpy(weight)
        np.testing.assert_array_equal(one, other)
        assert len(set(one)) > 1
        assert np.any(one != one.astype("float32"))


NUMBER = "`domain` must be an integer.*Received: domain="
RANGE = r"`domain` must be in the range \[0, 2\]. Received: domain="
BAD_CALLS = {
    "too large": ({"domain": 3}, ValueError, RANGE + "3"),
    "negative": ({"domain": -1}, ValueError, RANGE + "-1"),
    "array": ({"domain": np.array(3)}, ValueError, RANGE + "3"),
    "beyond 32 bits": ({"domain": np.array([2**32] * 4)}, ValueError, RANGE),
    "a sample": ({"domain": np.array([0, 1, 2, -2])}, ValueError, RANGE + "-2"),
    "float": ({"domain": 1.0}, TypeError, NUMBER + "1.0"),
    "None": ({"domain": None}, TypeError, NUMBER + "None"),
    "boolean": ({"domain": True}, TypeError, NUMBER + "True"),
    "float array": (
        {"domain": np.ones(4, "float32")},
        TypeError,
        "`domain` must hold integers.*Received: domain of dtype float32",
    ),
    "too few": (
        {"domain": np.zeros(3, "int32")},
        ValueError,
        r"`domain` must be a scalar, or have one value for each sample: shape \(4,\)."
        r" Received: domain of shape \(3,\)",
    ),
    "a column": (
        {"domain": np.zeros((4, 1), "int32")},
        ValueError,
        r"`domain` must be a scalar.*Received: domain of shape \(4, 1\)",
    ),
    "mask": (
        {"domain": np.zeros(4, "int32"), "mask": np.ones(3, bool)},
        ValueError,
        "`mask` must have",
    ),
}


@pytest.mark.parametrize(
    ("arguments", "error", "match"), BAD_CALLS.values(), ids=BAD_CALLS
)
def test_a_call_that_raises_leaves_the_layer_as_it_was(arguments, error, match):
    layer = built((None, 3))
    before = values(layer)
    with pytest.raises(error, match=f"(?s){match}"):
        layer(random((4, 3)), training=True, **arguments)
    np.testing.assert_equal(values(layer), before)


@ON_TORCH
def test_domains_of_samples_want_an_axis_for_the_batch():
    layer = keras_bn.DomainBatchNormalization(2, axis=0)
    layer(random((4, 3)), domain=1, training=True)
    with pytest.raises(ValueError, match="`domain` must be a scalar where the batch"):
        layer(random((4, 3)), domain=np.zeros(4, "int32"))


@ON_TORCH
def test_ghost_batches_want_batches_of_one_domain():
    """Groups go by position; with a domain a sample they would mix domains."""
    layer = built((None, 3), virtual_batch_size=2)
    plain, x = layer.domain_layer(1), random((8, 3))
    for domain in (1, np.int32(1)):
        y = layer(x, domain=domain, training=True)
        np.testing.assert_array_equal(
            frameworks.numpy(y), frameworks.numpy(plain(x, training=True))
        )
    before = values(layer)
    for domain in (np.array([0, 1] * 4), keras.Input((), dtype="int32")):
        given = keras.Input((3,)) if keras.backend.is_keras_tensor(domain) else x
        with pytest.raises(ValueError, match=r"`domain`.*`virtual_batch_size`.*one do"):
            layer(given, domain=domain, training=True)
    np.testing.assert_equal(values(layer), before)


@pytest.mark.skipif(frameworks.platform() != "cpu", reason="it would have to wait")
@pytest.mark.parametrize("x", [random((2, 3)), keras.Input((3,))], ids=["x", "Input"])
@pytest.mark.parametrize(
    ("domain", "error", "match"),
    [
        (np.array([0, 2], "int32"), ValueError, r"be in the range \[0, 1\].*=2"),
        (np.zeros(2, "float32"), TypeError, "hold integers.*float32"),
    ],
    ids=["range", "dtype"],
)
def test_a_tensor_of_domains_is_looked_at(x, domain, error, match):
    layer = keras_bn.DomainBatchNormalization(2)
    with pytest.raises(error, match=f"`domain` must {match}"):
        layer(x, domain=frameworks.tensor(domain))


SYMBOLIC = {
    "dtype": (keras.Input(()), TypeError, "`domain` must hold integers"),
    "rank": (keras.Input((1,), dtype="int32"), ValueError, "`domain` must be a scalar"),
    "range": (5, ValueError, r"`domain` must be in the range \[0, 1\]"),
}


@pytest.mark.parametrize(("domain", "error", "match"), SYMBOLIC.values(), ids=SYMBOLIC)
def test_a_functional_model_fails_where_it_is_made(domain, error, match):
    with pytest.raises(error, match=match):
        keras_bn.DomainBatchNormalization(2)(keras.Input((3,)), domain=domain)


CONSTRUCTOR = {
    "domains 0": ({"domains": 0}, ValueError, "`domains` must be an integer above 0"),
    "domains None": ({"domains": None}, TypeError, "`domains` must be an integer"),
    "share_affine": (
        {"domains": 2, "share_affine": "no"},
        TypeError,
        "`share_affine` must be True or False.*'no'",
    ),
    "another": ({"domains": 2, "epsilon": 0}, ValueError, "`epsilon` must be"),
}


@pytest.mark.parametrize(
    ("arguments", "error", "match"), CONSTRUCTOR.values(), ids=CONSTRUCTOR
)
def test_constructor(arguments, error, match):
    with pytest.raises(error, match=match):
        keras_bn.DomainBatchNormalization(**arguments)


@pytest.mark.parametrize(
    ("domain", "error", "match"),
    [(2, ValueError, r"in the range \[0, 1\]"), ("0", TypeError, "must be an integer")],
)
def test_a_domain_that_is_not_there_cannot_be_taken_out(domain, error, match):
    layer = keras_bn.DomainBatchNormalization(2)
    with pytest.raises(error, match=f"`domain` must be.*{match}|{match}"):
        layer.domain_layer(domain)
    with pytest.raises(ValueError, match="must be built before a domain can be taken"):
        layer.domain_layer(0)
