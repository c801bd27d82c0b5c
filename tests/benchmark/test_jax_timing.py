"""What the benchmark times on JAX alone: bare passes, flax's layer, a GPU's cache."""

import importlib.util
import types

import keras
import numpy as np
import pytest
from test_timing import (
    DY,
    EPSILON,
    MOMENTUM,
    TIMING,
    WAYS,
    X,
    assert_among,
    moved,
    norm,
    numbers,
    tensors,
)

import oracle

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="these are JAX's"
)


def peers(axis):
    return list(TIMING.native(*tensors(X, DY), axis, MOMENTUM, EPSILON, WAYS[0]))


def require_of(found, *inputs):
    """`found` is a sum of multiples of the inputs, of each of them, and a number."""
    columns = np.stack([np.ravel(one) for one in (*inputs, np.ones_like(X))], 1)
    shares = np.linalg.lstsq(columns, found.ravel())[0]
    np.testing.assert_allclose(columns @ shares, found.ravel(), atol=1e-4)
    assert (np.abs(shares) > 0.1).all()


@pytest.mark.parametrize("axis", [1, -1])
def test_bare_passes_are_four_sums_an_output_and_a_gradient(axis):
    bare = peers(axis)[0]
    *sums, y, dx = numbers(bare.training()())
    rest = tuple(i for i in range(X.ndim) if i != axis % X.ndim)
    expected = (one.sum(rest) for one in (X, X * X, DY, X * DY))
    for one, other in zip(sums, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    require_of(y, X)
    require_of(dx, X, DY)
    (inferred,) = numbers(bare.inference()())
    np.testing.assert_array_equal(inferred, y)


@pytest.mark.parametrize("axis", [1, -1])
def test_the_peer_is_flax_s_layer_which_moves_its_statistics_too(axis):
    peer = peers(axis)[-1]
    assert peer.name == TIMING.NATIVE == "flax.linen.BatchNorm"
    channels = X.shape[axis]
    dx, dgamma, dbeta = oracle.backward(X, DY, axis=axis, epsilon=EPSILON)
    y, mean, variance, _ = oracle.forward(X, axis=axis, epsilon=EPSILON)
    share = 1 - MOMENTUM
    moving = mean * share, MOMENTUM + variance * share
    vectors = [np.reshape(one, channels) for one in (dgamma, dbeta, *moving)]
    assert_among(numbers(peer.training()()), y, dx, *vectors)
    inferred = oracle.inference(X, 0.0, 1.0, axis=axis, epsilon=EPSILON)
    assert_among(numbers(peer.inference()()), inferred)
    # It keeps the normalized values beside x.
    assert peer.saved() >= 2 * X.nbytes


def test_without_flax_there_are_bare_passes_alone(monkeypatch):
    try:
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            importlib.reload(TIMING)
        assert [one.name for one in peers(-1)] == ["bare passes"]
    finally:
        importlib.reload(TIMING)


def test_the_layer_keeps_its_input_and_numbers_a_channel():
    kept = TIMING.saved_bytes(norm(), X)
    vectors = (kept - X.nbytes) / moved(MOMENTUM)[0].nbytes
    assert 0 < vectors < 16


STEPS = {
    "copy": lambda x, dy: TIMING.copy(x),
    "least": TIMING.least,
    "training": lambda x, dy: TIMING.training(norm(), x, dy, WAYS[0]),
    "inference": lambda x, dy: TIMING.inference(norm(), x, WAYS[0]),
    "model": lambda x, dy: TIMING.model_training(
        *(norm(), x[:, 0, 0], keras.ops.zeros(4, "int32"), WAYS[0])
    ),
}
STEPS |= {
    f"{name}, {mode}": lambda x, dy, i=i, mode=mode: getattr(peers(-1)[i], mode)()
    for i, name in ((0, "bare"), (-1, "flax"))
    for mode in ("training", "inference")
}


@pytest.mark.parametrize("name", STEPS)
def test_what_is_timed_is_compiled(name):
    import jax

    step = STEPS[name](*tensors(X, DY))
    operations = jax.make_jaxpr(step)().eqns
    assert len(operations) == (4 if name == "least" else 1)
    assert {one.primitive.name for one in operations} == {"jit"}


def test_all_of_a_result_is_waited_for():
    waited = []
    parts = [
        types.SimpleNamespace(block_until_ready=lambda i=i: waited.append(i))
        for i in range(2)
    ]
    TIMING.wait({"y": parts[0], "gradients": (parts[1],)})
    assert sorted(waited) == [0, 1]


def test_a_gpu_is_named_and_its_cache_overwritten_in_place(monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", device_kind="H100")
    monkeypatch.setattr(TIMING, "_device", lambda: gpu)
    monkeypatch.setattr(TIMING, "_FLUSHED", 64)
    assert TIMING.versions()["device"] == "H100"
    flush = TIMING.flush()
    first = flush()
    assert first.nbytes == 64
    before = np.array(first)
    second = flush()
    assert (np.array(second) != before).all()
    assert first.is_deleted()
