"""The operators on CUDA: what composes with them, and when they serve."""

import functools
import sys
import warnings

import pytest

import frameworks
import keras_bn
from cases_cuda import CASES, EPSILON, LIMITS, SERVED, Inputs, assert_close
from keras_bn import backend
from keras_bn.backend.interface import Axes

pytestmark = [
    pytest.mark.skipif(not SERVED, reason="kernels for PyTorch, in Triton, on Linux"),
    # NumPy's, of which the interpreter is made; a GPU says nothing of it.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) enc:RuntimeWarning"),
]
if SERVED:
    import torch

    from cases_cuda import DEVICE
    from keras_bn.backend import torch_cuda, torch_cuda_operators


@pytest.fixture(autouse=True)
def _fresh():
    """No reason of one test is another's."""
    yield
    torch_cuda._reason.cache_clear()
    torch_cuda._warn_once.cache_clear()


@pytest.fixture
def served(monkeypatch):
    """Inputs on the device at hand are served, a CPU being the interpreter's."""
    monkeypatch.setattr(torch_cuda, "_on_cuda", lambda x: x.device.type == DEVICE)
    monkeypatch.setattr(torch_cuda, "_reason", functools.cache(lambda device: None))


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that run, in turn."""
    names = []
    run = torch_cuda_operators._run

    def counted(kernel, *arguments, **constants):
        names.append(kernel.__name__)
        run(kernel, *arguments, **constants)

    monkeypatch.setattr(torch_cuda_operators, "_run", counted)
    return names


def operator_calls():
    """Of each operator, arguments that it takes."""
    inputs = Inputs(CASES["rank 5 first"])
    channels = inputs.scale.shape[0]
    vectors = (inputs.scale, inputs.offset, *torch.rand(3, channels, device=DEVICE))
    count, sums = (torch.ones(size, device=DEVICE) for size in ((), (2, channels)))
    rest = (*vectors, 1, EPSILON, "relu")
    mean, variance = vectors[3:]
    return {
        "moments": (inputs.x, 1),
        "merged": (torch.ones(5, 1 + 3 * channels, device=DEVICE),),
        "normalize": (inputs.x, *rest),
        "slopes": (inputs.x, inputs.dy, *rest),
        "input_gradient": (inputs.x, inputs.dy, sums, count, *rest),
        "usable": (mean, variance, count),
        "moving_average": (mean, variance, 0.9, mean > 0.5),
    }


OPERATORS = [
    *("moments", "merged", "normalize", "slopes", "input_gradient"),
    *("usable", "moving_average"),
]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_keep_the_rules(name):
    """Their schema, and what they say of their results to abstract tensors."""
    torch.library.opcheck(getattr(torch_cuda_operators, name), operator_calls()[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_map_over_a_batch(name):
    operator = getattr(torch.ops.keras_bn, name)
    first, *others = operator_calls()[name]
    batch = torch.stack([first, 2 * first, first.flip(0)], 1)
    mapped = torch.vmap(lambda one: operator(one, *others), in_dims=1)(batch)
    for one, expected in zip(batch.unbind(1), mapped, strict=True):
        torch.testing.assert_close(operator(one, *others), expected, rtol=0, atol=0)


@pytest.mark.skipif(
    not frameworks.WHOLE_GRAPHS, reason="Keras 3.14's operations break the graph"
)
@pytest.mark.usefixtures("served")
def test_torch_compile_takes_it_whole():
    inputs = Inputs(CASES["image last"])
    axes = Axes((3,), (0, 1, 2))

    def step(x, dy):
        assert torch_cuda.why_not(x, axes, None) is None
        parts = inputs.parts
        centred, _ = parts.moments(x)
        vectors = (inputs.scale, inputs.offset)
        where = torch_cuda.usable(centred.bookkeeping())
        average = torch_cuda.moving_average(
            centred.centre, centred.variance, 0.9, where
        )
        return (
            parts.normalize(x, None, *vectors, centred),
            *parts.gradients(x, *vectors, dy, centred, None, True),
            average,
        )

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for samples in (4, 3):
        arguments = inputs.x[:samples], inputs.dy[:samples]
        torch.testing.assert_close(compiled(*arguments), step(*arguments))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("dtype", "axes", "mask", "reason"),
    [
        ("float32", Axes((1,), (0, 2)), None, None),
        ("float16", Axes((2,), (0, 1)), None, None),
        ("float32", Axes((1,), (0, 2)), [True], "a mask"),
        ("float32", Axes((1, 2), (0,)), None, "several feature axes"),
        ("float64", Axes((1,), (0, 2)), None, "inputs of torch.float64"),
    ],
)
def test_what_is_not_served(dtype, axes, mask, reason):
    x = torch.zeros(4, 3, 2, dtype=getattr(torch, dtype), device=DEVICE)
    mask = mask and torch.tensor(mask, device=DEVICE)
    assert torch_cuda.why_not(x, axes, mask) == reason


@pytest.mark.usefixtures("served")
def test_which_statistics_are_served():
    single, double = torch.zeros(2, device=DEVICE), torch.zeros(2).double().to(DEVICE)
    assert torch_cuda.serves_statistics(single, single)
    assert not torch_cuda.serves_statistics(single, double)
    assert not torch_cuda.serves_statistics(single.to("meta"))


def test_inputs_elsewhere_are_not_served_and_nobody_warns():
    axes = Axes((1,), (0,))
    for device in ("cpu", "meta"):
        reason = torch_cuda.why_not(torch.zeros(2, 2, device=device), axes, None)
        assert reason == f"inputs on {device}, not on cuda"


@pytest.fixture
def device(monkeypatch):
    """A device that seems to be there, of the capability that the test sets."""

    def of(capability):
        monkeypatch.setattr(torch_cuda, "_on_cuda", lambda x: True)
        monkeypatch.setattr(torch_cuda, "_DEVICE", DEVICE)
        monkeypatch.setattr(torch_cuda, "_capability", lambda device: capability)

    return of


def why_not_and_warnings():
    """The reason, twice, and what was warned of."""
    axes, x = Axes((1,), (0,)), torch.zeros(2, 2, device=DEVICE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reasons = {torch_cuda.why_not(x, axes, None) for _ in range(2)}
        assert torch_cuda.serves_statistics(x) is (reasons == {None})
    return *reasons, [str(one.message) for one in caught]


def test_an_old_device_is_warned_of_once(device):
    device((7, 5))
    reason, warned = why_not_and_warnings()
    assert reason == "it has compute capability 7.5, not 8.0 or higher"
    assert len(warned) == 1
    assert f"by plain formulas, which take several times as long: {reason}" in warned[0]


def test_no_triton_is_warned_of_once(device, monkeypatch):
    device((9, 0))
    name = "keras_bn.backend.torch_cuda_operators"
    monkeypatch.delattr(backend, "torch_cuda_operators")
    monkeypatch.setitem(sys.modules, name, None)
    reason, warned = why_not_and_warnings()
    assert reason.startswith("Triton cannot be imported (")
    assert len(warned) == 1
    assert reason in warned[0]


def test_a_triton_that_fails_is_warned_of_once(device, monkeypatch):
    device((9, 0))

    def fail(*arguments, **constants):
        raise OSError("no C compiler")

    monkeypatch.setattr(torch_cuda_operators, "_run", fail)
    reason, warned = why_not_and_warnings()
    assert reason == "Triton fails on it (OSError: no C compiler)"
    assert len(warned) == 1


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_triton_that_works_is_not_warned_of(capability, device, launches):
    device(capability)
    assert why_not_and_warnings() == (None, [])
    assert launches == ["usable"]


@pytest.mark.parametrize("tracer", ["torch.compile", "make_fx"])
def test_it_is_tried_for_real_while_abstract_tensors_are_traced(
    device, launches, tracer
):
    from torch.fx.experimental.proxy_tensor import make_fx

    device((9, 0))

    def serves(x):
        assert torch_cuda.why_not(x, Axes((1,), (0,)), None) is None
        return x + 1

    x = torch.zeros(2, 2, device=DEVICE)
    if tracer == "torch.compile":
        torch.compile(serves, backend="aot_eager", fullgraph=True)(x)
    else:
        make_fx(serves, tracing_mode="fake")(x)
    assert launches == ["usable"]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("name", ["image last", "image first", "no sample"])
def test_the_layer_trains_on_them(launches, name):
    """By the public way: output, gradients and moving averages."""
    inputs = Inputs(CASES[name])
    case, dtype = inputs.case, CASES[name].dtype
    layer = keras_bn.BatchNormalization(
        case.axis, epsilon=EPSILON, momentum=0.5, activation=case.activation
    )
    layer.build(case.shape)
    layer.gamma.assign(inputs.scale)
    layer.beta.assign(inputs.offset)
    x = inputs.x.requires_grad_()
    y = layer(x, training=True)
    leaves = [x, layer.gamma.value, layer.beta.value]
    dx, dgamma, dbeta = torch.autograd.grad(y, leaves, inputs.dy)
    # With the two copies into the variables, and the mean of centre and residual, 12.
    assert len(launches) == (9 if case.shape[0] else 3)
    assert y.stride() == x.stride()
    expected, slopes = inputs.expected()
    limit = LIMITS[dtype]
    for one, right in (
        (y, expected.y),
        (dx, slopes.x),
        (dgamma, slopes.gamma),
        (dbeta, slopes.beta),
    ):
        assert_close(one, right, limit)
    if case.shape[0]:
        assert_close(layer.moving_mean.value, expected.mean / 2, LIMITS["float32"])
        variance = expected.variance / 2 + 0.5
        assert_close(layer.moving_variance.value, variance, LIMITS["float32"])
    else:
        assert layer.moving_variance.value.tolist() == [1.0] * case.shape[case.axis]


def test_a_centre_beside_the_mean_changes_no_gradient():
    inputs = Inputs(CASES["image last"])
    found, _ = inputs.parts.moments(inputs.x)
    beside = found._replace(centre=found.centre + 0.25, residual=found.residual - 0.25)
    given = inputs.x, inputs.scale, inputs.offset, inputs.dy
    one, other = (
        inputs.parts.gradients(*given, moments, None, True)
        for moments in (found, beside)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("served")
def test_a_gradient_of_the_gradient_goes_by_the_formulas():
    inputs = Inputs(CASES["image last"])
    inputs.x = inputs.x - 1e5

    def slope(x, create_graph):
        y, _ = keras_bn.ops.batch_norm_train(x, inputs.scale, inputs.offset)
        return torch.autograd.grad((y**3).sum(), x, create_graph=create_graph)[0]

    x = inputs.x.requires_grad_()
    torch.testing.assert_close(slope(x, True), slope(x, False), rtol=1e-4, atol=1e-4)
    (second,) = torch.autograd.grad((slope(x, True) * inputs.dy).sum(), x)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0
