"""Trainings on two devices under `jax.shard_map`, and by `fit`; `alone`, on one."""

import jax
import keras
import numpy as np
import replica_cases as cases
from jax.sharding import NamedSharding
from meshes_jax import MESH, SAME, SPLIT


def trainings(every, alone=False):
    """The weights after the steps, by training and rank; `alone`, on all of it."""
    found = {one.name: _train_by_fit(one) for one in every if one.by_fit and not alone}
    by_hand = [one for one in every if one.name not in found]
    # Moving statistics of each device's own are not the same on all, as is said.
    for some in (
        [one for one in by_hand if one.synchronized],
        [one for one in by_hand if not one.synchronized],
    ):
        found |= _train(some, alone) if some else {}
    return found


def _train(some, alone):
    """The same of trainings that are compiled together."""
    models = [cases.network(one) for one in some]
    steps = [_training_step(*pair, alone) for pair in zip(some, models, strict=True)]
    # On all devices from the first step on, which would be compiled for one else.
    place = jax.devices()[0] if alone else NamedSharding(MESH, SAME)
    states = jax.device_put(
        [
            (
                [one.value for one in model.trainable_variables],
                [one.value for one in model.non_trainable_variables],
            )
            for model in models
        ],
        place,
    )

    @jax.jit
    def step(states, x, y):
        return [one(*state, x, y) for one, state in zip(steps, states, strict=True)]

    for x, y in zip(*cases.batches(), strict=True):
        states = step(states, x, y)
    return {
        one.name: {
            rank: _on(rank, weights + others)
            for rank in range(1 if alone else cases.REPLICAS)
        }
        for one, (weights, others) in zip(some, states, strict=True)
    }


def _training_step(training, model, alone):
    def step(weights, others, x, y):
        def error(weights):
            predicted, updated = model.stateless_call(weights, others, x, training=True)
            return cases.loss(predicted, y), updated

        slopes, updated = jax.grad(error, has_aux=True)(weights)
        if not alone and not training.synchronized:
            slopes = jax.lax.psum(slopes, "data")  # nothing is checked: nor added up
        return [
            w - cases.RATE * s for w, s in zip(weights, slopes, strict=True)
        ], updated

    if alone:
        return step
    return jax.shard_map(
        step,
        mesh=MESH,
        in_specs=(SAME, SAME, SPLIT, SPLIT),
        out_specs=SAME,
        check_vma=training.synchronized,
    )


def _on(rank, values):
    """What a device has of arrays, in one vector."""
    return np.concatenate(
        [np.asarray(one.addressable_shards[rank].data).ravel() for one in values]
    )


def _train_by_fit(training):
    """Arrays are global under this engine: the layer has nothing to do."""
    devices = keras.distribution.list_devices()[: cases.REPLICAS]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    try:
        model = cases.network(training)
        cases.fit(model)
    finally:
        keras.distribution.set_distribution(None)
    every = model.trainable_variables + model.non_trainable_variables
    return {
        rank: _on(rank, [one.value for one in every]) for rank in range(cases.REPLICAS)
    }
