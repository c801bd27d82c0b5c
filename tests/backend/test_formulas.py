"""What the formulas promise each other, apart from any kernel."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from test_kernels import Inputs

import cases
import frameworks
from keras_bn.backend import derivatives, formulas, reference
from keras_bn.backend.interface import Axes
from slow import slow

CASES = cases.KINDS | {"weights": cases.WEIGHTS["weights_keras_two_axes"]}

pytestmark = pytest.mark.usefixtures("float64")

ONCE = slow("JAX compiles each operator of each shape", but_on="torch")


def beside(centre):
    """A centre beside the mean, as a sample's is, or that of other replicas."""
    return centre + 0.25


def moments(x, inputs, mask, settled=beside):
    return formulas.centred_moments(x, inputs.axes, mask, settled)


def _tangents_and_gradients(case, activation):
    """`y'` along random tangents, `dy`, those tangents, and the gradients of `dy`."""
    inputs = Inputs(case, "float64", mean=3.0)
    rng = np.random.default_rng(1)
    tangents = [
        frameworks.tensor(rng.normal(size=tuple(one.shape))) for one in inputs.tensors
    ]
    if weighted(inputs):
        tangents.append(frameworks.tensor(rng.normal(size=tuple(inputs.mask.shape))))
    options = (inputs.axes, 1e-3, activation)

    def derive(x, scale, offset, mask, tangents, dy):
        given = (x, scale, offset, mask, moments(x, inputs, mask))
        every = (*tangents, *[None] * (4 - len(tangents)))
        along = derivatives.tangent(*given, every, *options)
        return along, derivatives.gradients(
            *(*given, dy, *options), of_weights=weighted(inputs)
        )

    along, slopes = frameworks.at_once(derive)(
        *inputs.tensors, inputs.mask, tangents, inputs.dy
    )
    return inputs, tangents, along, slopes


def assert_near(received, expected):
    """Both are dictionaries of tensors, or of lists of them."""
    for name, value in received.items():
        pairs = (value, expected[name])
        if not isinstance(value, list):
            pairs = [[one] for one in pairs]
        for one, other in zip(*pairs, strict=True):
            one, other = map(frameworks.numpy, (one, other))
            np.testing.assert_allclose(one, other, atol=1e-11, err_msg=name)


def weighted(inputs):
    """Whether there are weights, for which there are a tangent and a gradient."""
    return formulas.is_weights(inputs.mask)


def _dot(ones, others):
    return sum(
        np.sum(frameworks.numpy(one) * frameworks.numpy(other))
        for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize(
    ("case", "activation"),
    # A slope knows no shapes.
    [
        *((case, "sigmoid") for case in CASES.values()),
        *((CASES["weights"], activation) for activation in (None, "relu")),
    ],
)
def test_gradients_are_the_transpose_of_the_tangent(case, activation):
    inputs, tangents, along, slopes = _tangents_and_gradients(case, activation)
    forward, backward = _dot([along], [inputs.dy]), _dot(tangents, slopes)
    assert abs(forward - backward) <= 1e-9 * max(1, abs(forward))


@cases.parametrize(CASES)
def test_the_tangent_is_the_derivative(case):
    inputs, tangents, along, _ = _tangents_and_gradients(case, "sigmoid")

    def value(step):
        every = [*inputs.tensors, *([inputs.mask] if weighted(inputs) else [])]
        moved = [
            one + step * tangent for one, tangent in zip(every, tangents, strict=True)
        ]
        mask = moved.pop() if weighted(inputs) else inputs.mask
        centred = moments(moved[0], inputs, mask, settled=lambda centre: centre)
        return keras.ops.sigmoid(formulas.normalize(*moved, centred, inputs.axes, 1e-3))

    step = 1e-5
    ahead, behind = map(frameworks.numpy, map(frameworks.at_once(value), (step, -step)))
    expected = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(frameworks.numpy(along), expected, atol=1e-7)


@cases.parametrize(CASES)
def test_a_tangent_of_none_is_one_of_zeros(case):
    inputs = Inputs(case, "float64")
    x, scale, offset = inputs.tensors
    given = (x, scale, offset, inputs.mask, moments(x, inputs, inputs.mask))

    tangents = (x, scale, offset, inputs.mask if weighted(inputs) else None)
    alone = [
        tuple(one if i == k else None for k, one in enumerate(tangents))
        for i, tangent in enumerate(tangents)
        if tangent is not None
    ]

    @frameworks.at_once
    def along(given, every):
        options = (inputs.axes, 1e-3, "sigmoid")
        return [derivatives.tangent(*given, some, *options) for some in every]

    *parts, whole = map(frameworks.numpy, along(given, [*alone, tangents]))
    np.testing.assert_allclose(sum(parts), whole, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [((64, 3), -1, (2, 3)), ((65, 2, 3), 2, (3, 2, 3)), ((3, 33), 0, (3, 2))],
)
def test_a_sample_is_a_32nd_or_more(shape, axis, size):
    inputs = Inputs(cases.Case(shape, axis), "float64")
    sample = frameworks.numpy(formulas.sample(inputs.tensors[0], inputs.axes))
    whole = frameworks.numpy(inputs.tensors[0])
    np.testing.assert_array_equal(sample, whole[tuple(map(slice, size))])
    given = (inputs.tensors[0], inputs.axes, None)
    about = formulas.centred_moments(*given, about=frameworks.tensor(sample))
    plain = formulas.centred_moments(*given)
    assert_near(about.bookkeeping()._asdict(), plain.bookkeeping()._asdict())


@ONCE
def test_half_precision_is_normalized_by_one_multiply_add():
    inputs = Inputs(CASES["image"], "float16", mean=3.0)
    x, *parameters = inputs.tensors
    centred = moments(formulas.widen(x), inputs, None)
    y, expected = (
        formulas.normalize(one, *parameters, centred, inputs.axes, 1e-3)
        for one in (x, formulas.widen(x))
    )
    one, other = map(frameworks.numpy, (y, expected))
    np.testing.assert_allclose(one, other, atol=1e-5)


@ONCE
def test_a_tangent_in_half_precision_is_added_up_in_float32():
    inputs = Inputs(CASES["image"], "bfloat16", mean=3.0)
    x, *parameters = inputs.tensors
    given = (x, *parameters, None, moments(formulas.widen(x), inputs, None))
    along, expected = (
        derivatives.tangent(*given, (tx, None, None, None), inputs.axes, 1e-3, None)
        for tx in (inputs.dy, formulas.widen(inputs.dy))
    )
    np.testing.assert_array_equal(*map(frameworks.numpy, (along, expected)))


@ONCE
@cases.parametrize(CASES)
def test_a_centre_beside_the_mean_changes_nothing(case):
    inputs = Inputs(case, "float64", mean=3.0)
    x, *parameters = inputs.tensors
    at, aside = (
        moments(x, inputs, inputs.mask, settled)
        for settled in (lambda centre: centre, beside)
    )
    assert np.all(np.abs(frameworks.numpy(aside.residual)) > 0.2)
    assert {keras.backend.standardize_dtype(one.dtype) for one in at} == {"float64"}
    received, expected = (
        {
            **centred.bookkeeping()._asdict(),
            "y": formulas.normalize(x, *parameters, centred, inputs.axes, 1e-3),
        }
        for centred in (aside, at)
    )
    assert_near(received, expected)


class Replica:
    """One of two that run one after the other; `heard` is what the other said."""

    def __init__(self, heard=()):
        self._heard, self.said = list(heard), []

    def gather(self, values):
        return keras.ops.stack([values, *self._exchanged(values)])

    def total(self, values):
        return sum(self._exchanged(values), values)

    def _exchanged(self, values):
        self.said.append(values)
        return [self._heard.pop(0)] if self._heard else []


def on_both(function):
    """`function(number, replica)` of two replicas that hear each other."""
    alone = [Replica(), Replica()]
    for number, replica in enumerate(alone):
        function(number, replica)
    return [function(number, Replica(alone[1 - number].said)) for number in (0, 1)]


@ONCE
@pytest.mark.parametrize("name", ["dense", "image", "weights"])
def test_two_replicas_are_one_batch(name):
    """Of a sample and of all the others, about centres that differ."""
    inputs = Inputs(CASES[name], "float64", mean=3.0)
    tangent = Inputs(CASES[name], "float64", mean=1.0)
    x, scale, offset = inputs.tensors
    halves = slice(1), slice(1, None)
    mask = [None if inputs.mask is None else inputs.mask[half] for half in halves]
    options = (inputs.axes, 1e-3, "tanh")

    def own_moments(number, replica):
        own = moments(x[halves[number]], inputs, mask[number], beside)
        return formulas.over_replicas(own, replica)

    found = on_both(own_moments)

    def slopes(number, replica):
        half = halves[number]
        return derivatives.gradients(
            *(x[half], scale, offset, mask[number], found[number], inputs.dy[half]),
            *(*options, replica),
            of_weights=weighted(inputs),
        )

    def along(number, replica):
        half = halves[number]
        tangents = (tangent.tensors[0][half], *tangent.tensors[1:])
        weights = tangent.mask[half] if weighted(inputs) else None
        return derivatives.tangent(
            *(x[half], scale, offset, mask[number], found[number]),
            *((*tangents, weights), *options, replica),
        )

    whole = moments(x, inputs, inputs.mask)
    given = (x, scale, offset, inputs.mask, whole)
    dx, dscale, doffset, *dweights = derivatives.gradients(
        *(*given, inputs.dy, *options), of_weights=weighted(inputs)
    )
    tangents = (*tangent.tensors, tangent.mask if weighted(inputs) else None)
    expected = {
        "y'": derivatives.tangent(*given, tangents, *options),
        **{"dx": dx, "dscale": dscale, "doffset": doffset},
        "dweights": dweights,
    }
    together = keras.ops.concatenate
    one, other = on_both(slopes)
    received = {
        "y'": together(on_both(along)),
        "dx": together([one[0], other[0]]),
        # Of each replica's own output, as everywhere.
        **{"dscale": one[1] + other[1], "doffset": one[2] + other[2]},
        "dweights": [together(pair) for pair in zip(one[3:], other[3:], strict=True)],
    }
    assert_near(received, expected)
    for replica in found:
        assert_near(replica.bookkeeping()._asdict(), whole.bookkeeping()._asdict())


@ONCE
@pytest.mark.parametrize("name", ["first_image", "two_axes"])
def test_inference_gradients_are_those_of_the_reference(name):
    inputs = Inputs(CASES[name], "float64", mean=3.0)
    x, scale, offset = inputs.tensors
    given = (x, offset + 1, scale * scale + 0.5, scale, offset)
    _, _, expected = frameworks.gradients(
        lambda *tensors: (
            reference.inference(*tensors, inputs.axes, 1e-3, None),
            None,
        ),
        given,
        inputs.dy,
    )
    found = derivatives.inference_gradients(*given, inputs.dy, inputs.axes, 1e-3)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(frameworks.numpy(one), other, atol=1e-10)


@pytest.mark.parametrize("axis", [(1,), (3,), (0, 2)])
def test_a_joint_sum_is_the_sum_of_sums(axis):
    x = frameworks.tensor(np.random.default_rng(0).normal(size=(2, 3, 4, 5)))
    axes = Axes(axis, tuple(i for i in range(4) if i not in axis))
    apart, joint = (
        frameworks.numpy(formulas.total(x, axes._replace(jointly=jointly)))
        for jointly in (False, True)
    )
    assert apart.shape == joint.shape
    np.testing.assert_allclose(apart, joint, rtol=1e-13)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="what torch.compile is given"
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiler_for_a_gpu_is_given_joint_sums(monkeypatch, device):
    """It splits one sum over all axes by itself; of sums in turn it makes kernels."""
    import torch

    from keras_bn.backend import torch_kernels

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = SimpleNamespace(device=SimpleNamespace(type=device))
    axes = Axes((3,), (0, 1, 2))
    call = torch_kernels._Call(x, None, None, axes, 1e-3, None, None, None)
    choice = next(one for one in torch_kernels._CHOICES if one.serves(call))
    assert choice.service.kernel == "torch_parts"
    assert choice.parts(call).axes.jointly == (device == "cuda")
