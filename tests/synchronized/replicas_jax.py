"""Two devices under `jax.shard_map`, in one process."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import replica_cases as cases
from jax.sharding import AxisType, PartitionSpec

from keras_bn.backend import jax_context

PROCESSES = 1
jax.config.update("jax_num_cpu_devices", cases.REPLICAS)
MESH = jax.make_mesh((cases.REPLICAS,), ("data",), axis_types=(AxisType.Auto,))
SPLIT, SAME = PartitionSpec("data"), PartitionSpec()


def start():
    pass


def stop():
    pass


def _evenly(case, arrays):
    """Equal parts, as shard_map wants them: short ones are filled up and masked."""
    if len(set(case.sizes)) == 1:
        return case, arrays
    longest = max(case.sizes)

    def fill(one, value):
        parts = [one[begin:end] for begin, end in cases.ends(case.sizes)]
        rows = [
            np.full((longest - len(part), *one.shape[1:]), value, one.dtype)
            for part in parts
        ]
        return np.concatenate(
            [x for pair in zip(parts, rows, strict=True) for x in pair]
        )

    counts = case.masked or case.weighted
    mask = arrays["mask"] if counts else np.ones_like(arrays["mask"])
    filled = {**arrays, "mask": fill(mask, False)}
    filled |= {name: fill(arrays[name], 0) for name in ("x", "dy")}
    return case._replace(masked=not case.weighted), filled


def _step(case):
    def step(x, dy, mask, gamma, beta):
        # The cast's transpose would add up the gradients of gamma and beta.
        gamma, beta = jax_context.vary_alike(x, gamma, beta)
        y, pull_back, moments = jax.vjp(
            lambda *inputs: cases.call(case, *inputs, mask),
            x,
            gamma,
            beta,
            has_aux=True,
        )
        dx, dgamma, dbeta = pull_back(dy)
        return y, dx, dgamma[None], dbeta[None], tuple(moments)

    if case.way.startswith("pmap"):
        return _by_pmap(step, "data" if "named" in case.way else None)
    checked = case.synchronized and "unchecked" not in case.way
    return jax.jit(
        jax.shard_map(
            step,
            mesh=MESH,
            in_specs=(SPLIT, SPLIT, SPLIT, SAME, SAME),
            # Checked are the moments, to be the same on all devices.
            out_specs=(SPLIT, SPLIT, SPLIT, SPLIT, SAME),
            check_vma=checked,
        )
    )


def _by_pmap(step, name):
    """`step` under `jax.pmap`, which wants an axis of its own for the devices."""

    def whole(*arrays):
        batch = [
            np.reshape(one, (cases.REPLICAS, -1, *one.shape[1:])) for one in arrays[:3]
        ]
        run = jax.pmap(step, axis_name=name, in_axes=(0, 0, 0, None, None))
        *found, moments = run(*batch, *arrays[3:])
        y, dx, dgamma, dbeta = (np.concatenate(one) for one in found)
        return y, dx, dgamma, dbeta, jax.tree.map(_Sharded, moments)

    return whole


class _Sharded:
    """What pmap stacked, told apart again by device."""

    def __init__(self, stacked):
        self.addressable_shards = [_Shard(one) for one in stacked]


class _Shard:
    def __init__(self, data):
        self.data = data


def operation(case):
    """Each replica's results of one call, by its rank."""
    served, arrays = _evenly(case, cases.data(case))
    original = jax_context.ManualAxes.total
    if case.mutated:
        jax_context.ManualAxes.total = lambda self, values: values
    try:
        y, dx, dgamma, dbeta, moments = _step(served)(
            *(arrays[name] for name in ("x", "dy", "mask", "gamma", "beta"))
        )
    finally:
        jax_context.ManualAxes.total = original
    longest = max(case.sizes)
    named = dict(zip(("count", "mean", "variance"), moments, strict=True))
    return {
        rank: {
            **{
                name: np.asarray(one[rank * longest :][: case.sizes[rank]], "float64")
                for name, one in (("y", y), ("x", dx))
            },
            "gamma": np.asarray(dgamma[rank]),
            "beta": np.asarray(dbeta[rank]),
            **{
                name: np.asarray(one.addressable_shards[rank].data)
                for name, one in named.items()
            },
        }
        for rank in range(cases.REPLICAS)
    }


def train(training, alone=False):
    """The weights after the steps, by rank; `alone`, on the whole batch."""
    if training.by_fit and not alone:
        return _train_by_fit(training)
    model = cases.network(training)

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

    if not alone:
        step = jax.shard_map(
            step,
            mesh=MESH,
            in_specs=(SAME, SAME, SPLIT, SPLIT),
            out_specs=SAME,
            # Moving statistics of each device's own are not the same on all.
            check_vma=training.synchronized,
        )
    step = jax.jit(step)
    weights = [one.value for one in model.trainable_variables]
    others = [one.value for one in model.non_trainable_variables]
    for x, y in zip(*cases.batches(), strict=True):
        weights, others = step(weights, others, x, y)
    return {
        rank: np.concatenate(
            [
                np.asarray(one.addressable_shards[rank].data).ravel()
                for one in (*weights, *others)
            ]
        )
        for rank in range(1 if alone else cases.REPLICAS)
    }


def _train_by_fit(training):
    """Arrays are global under this engine: the layer has nothing to do."""
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        model = cases.network(training)
        cases.fit(model)
    finally:
        keras.distribution.set_distribution(None)
    every = model.trainable_variables + model.non_trainable_variables
    return {
        rank: np.concatenate(
            [np.asarray(v.value.addressable_shards[rank].data).ravel() for v in every]
        )
        for rank in range(cases.REPLICAS)
    }


def collectives():
    """How often the devices talk in one call: forward, backward."""
    case = cases.CASES[0]
    arrays = cases.data(case)
    inputs = [jnp.asarray(arrays[n]) for n in ("x", "dy", "mask", "gamma", "beta")]
    text = _step(case).lower(*inputs).as_text()
    return {
        "forward": text.count("stablehlo.all_gather"),
        "both": text.count("stablehlo.all_gather") + text.count("stablehlo.all_reduce"),
    }
