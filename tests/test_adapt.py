"""How the example `repair` adapts a model: what moves, and by which formula."""

import keras
import numpy as np

import _adapt
import keras_bn
from cases_tools import images, numpy, randomize, weights_of
from slow import slow

# An example's own arithmetic, in Keras's words.
pytestmark = slow("compiles a network's step on JAX", but_on="torch")

L = keras.layers


def network():
    layers = [keras.Input((3,)), L.Dense(4), keras_bn.BatchNormalization(), L.Dense(5)]
    return randomize(keras.Sequential(layers))


def test_entropy():
    logits = images(6, 5).astype("float64")
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -(shares * np.log(shares)).sum(-1)
    received = numpy(_adapt.entropy(None, keras.ops.convert_to_tensor(logits)))
    np.testing.assert_allclose(received, expected, rtol=1e-6)


def test_gamma_and_beta_alone_move_and_entropy_falls():
    model, x = network(), images(32, 3)
    before = weights_of(model)
    tent = _adapt.EntropyMinimization(model)

    def answered():
        return numpy(tent.model.predict_on_batch(x))

    norm, dense = tent.model.layers[1], tent.model.layers[0]
    first = answered()
    # The answers of the first batch are by its statistics, before any step.
    np.testing.assert_array_equal(tent.classes(model, 32, 0.01, x), first.argmax(-1))
    pairs = zip(
        (*norm.weights[:2], *dense.weights),
        (*model.layers[1].weights[:2], *model.layers[0].weights),
        strict=True,
    )
    moved = [not np.array_equal(numpy(one), numpy(other)) for one, other in pairs]
    assert moved == [True, True, False, False]
    entropies = [
        numpy(_adapt.entropy(None, keras.ops.convert_to_tensor(one))).mean()
        for one in (first, answered())
    ]
    assert entropies[1] < entropies[0]
    assert weights_of(model) == before


def test_new_statistics_are_those_of_the_batch_and_leave_the_model():
    model, x = network(), images(20, 3)
    before = weights_of(model)
    found = _adapt.by_new_statistics(model, 10, None, x)
    by_batch = keras_bn.convert(model, inference_statistics="batch")
    expected = [by_batch.predict_on_batch(part).argmax(-1) for part in (x[:10], x[10:])]
    np.testing.assert_array_equal(found, np.concatenate(expected))
    assert weights_of(model) == before


def test_what_is_left_over_joins_the_last_batch():
    sizes = [len(one) for one in _adapt.batches(np.zeros(23), 10)]
    assert sizes == [10, 13]
    assert [len(one) for one in _adapt.batches(np.zeros(3), 10)] == [3]
