"""Two devices under `jax.shard_map`, in one process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import replica_cases as cases
from jax.sharding import NamedSharding, PartitionSpec
from meshes_jax import GROUPS, MESH, SAME, SPLIT, SQUARE
from trainings_jax import trainings  # noqa: F401  (asked for by replica_worker)

import keras_bn
from keras_bn.backend import copies, jax_replicas


def _mesh_of(case):
    if len(case.sizes) == cases.REPLICAS:
        return MESH
    return SQUARE if case.named else GROUPS


def start_groups(folder):
    """All replicas are in this process, which goes on with the other cases."""
    return False


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
    checked = case.synchronized and not case.way
    grouped = case.groups is not None
    # The layer would take gamma's variation for that of other channels.
    named = "data" if checked and not grouped else None

    def step(x, dy, mask, gamma, beta):
        # The cast's transpose would add up the gradients of gamma and beta.
        gamma, beta = jax_replicas.vary_alike(x, gamma, beta)
        y, pull_back, moments = jax.vjp(
            lambda *inputs: cases.call(case, *inputs, mask, named),
            x,
            gamma,
            beta,
            has_aux=True,
        )
        dx, dgamma, dbeta = pull_back(dy)
        if grouped:
            moments = [one[None] for one in moments]
        return y, dx, dgamma[None], dbeta[None], tuple(moments)

    if case.way.startswith("pmap"):
        return _by_pmap(case, step, "data" if "named" in case.way else None)
    mesh = _mesh_of(case)
    split = PartitionSpec(mesh.axis_names)
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(split, split, split, SAME, SAME),
            # Checked are the moments, to be the same on all devices.
            out_specs=(split, split, split, split, split if grouped else SAME),
            check_vma=checked,
        )
    )


def _by_pmap(case, step, name):
    """`step` under `jax.pmap`, which wants an axis of its own for the devices."""

    def whole(*arrays):
        batch = [
            np.reshape(one, (len(case.sizes), -1, *one.shape[1:])) for one in arrays[:3]
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


INPUTS = ("x", "dy", "mask", "gamma", "beta")


def operations(every):
    """Each replica's results of one call, by case and rank.

    The cases on the same devices are one program: together they compile in half the
    time. Alone are those that another trace, or another compiler, must not see.
    """
    together = {}
    for case in every:
        apart = case.mutated or not case.synchronized or case.way.startswith("pmap")
        kind = case.name if apart else len(case.sizes)
        together.setdefault(kind, []).append(case)
    found = {}
    for some in together.values():
        found |= _of_one_program(some)
    return found


def _of_one_program(some):
    served = [_evenly(case, cases.data(case)) for case in some]
    steps = [_step(case) for case, _ in served]

    def whole(inputs):
        return [step(*one) for step, one in zip(steps, inputs, strict=True)]

    run = jax.jit(whole) if len(some) > 1 else whole
    original = jax_replicas.ManualAxes.total
    if some[0].mutated:
        jax_replicas.ManualAxes.total = lambda self, values: values
    try:
        outputs = run([[arrays[name] for name in INPUTS] for _, arrays in served])
    finally:
        jax_replicas.ManualAxes.total = original
    return {
        case.name: _by_rank(case, *one) for case, one in zip(some, outputs, strict=True)
    }


def _by_rank(case, y, dx, dgamma, dbeta, moments):
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
        for rank in range(len(case.sizes))
    }


def grouped():
    """What else four replicas find, by rank."""
    layer, x = cases.grouped_layer()
    given = [one.value for one in layer.trainable_variables]
    others = [one.value for one in layer.non_trainable_variables]

    def step(x):
        _, moved = layer.stateless_call(given, others, x, training=True)
        return [one[None] for one in moved]

    def mapped(function, mesh=GROUPS, checked=True, inputs=SPLIT):
        return jax.shard_map(
            function, mesh=mesh, in_specs=inputs, out_specs=inputs, check_vma=checked
        )

    moved = jax.jit(mapped(step))(x)
    found = {
        rank: {"layer": np.stack([one[rank] for one in moved])}
        for rank in range(cases.GROUP_REPLICAS)
    }
    found[0] |= cases.refusals(
        lambda groups: jax.eval_shape(
            mapped(lambda x: cases.synchronized(x, groups)), x
        )
    )
    found[0]["same along an axis"] = _slope_where_an_axis_has_the_same(x)
    found[0]["copies of shards"] = np.stack(
        copies(jax.device_put(x, NamedSharding(GROUPS, SPLIT)))
    )
    model = cases.replica_state(0)
    states = np.stack(
        [
            cases.state(cases.replica_state(rank))[-6:].reshape(2, 3)
            for rank in range(cases.GROUP_REPLICAS)
        ]
    )
    # Called the same on all devices, which they are not.
    called_same = jax.shard_map(
        lambda x: x[0], mesh=GROUPS, in_specs=SPLIT, out_specs=SAME, check_vma=False
    )(states)
    for number, weight in enumerate(model.layers[1].non_trainable_variables):
        weight.assign(called_same[number])
    report = keras_bn.average_statistics(model)
    for rank in found:
        found[rank]["averaged"] = cases.state(model)[-6:].reshape(2, 3)
        found[rank]["averaged, replicas"] = report.replicas
    channels = PartitionSpec("data", "model")
    for name, attempt in {
        "axes": mapped(cases.synchronized, SQUARE, inputs=channels),
        "axes, unchecked": mapped(cases.synchronized, SQUARE, False, inputs=channels),
    }.items():
        found[0] |= cases.refusal(
            name, functools.partial(jax.eval_shape, attempt, x[:, :2])
        )
    return found


def _slope_where_an_axis_has_the_same(x):
    """By groups along one axis of the mesh, where the batch is split over the other."""

    def slope(x):
        return jax.grad(lambda x: (cases.synchronized(x, cases.PAIRS) ** 3).sum())(x)

    mapped = jax.shard_map(slope, mesh=SQUARE, in_specs=SPLIT, out_specs=SPLIT)
    return np.asarray(jax.jit(mapped)(x))


def collectives():
    """How often the devices talk in one call: forward, backward."""
    case = cases.CASES[0]
    arrays = cases.data(case)
    inputs = [jnp.asarray(arrays[name]) for name in INPUTS]
    text = _step(case).lower(*inputs).as_text()
    return {
        "forward": text.count("stablehlo.all_gather"),
        "both": text.count("stablehlo.all_gather") + text.count("stablehlo.all_reduce"),
    }
