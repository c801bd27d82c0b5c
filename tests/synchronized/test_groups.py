"""Four replicas that take their statistics in groups, against one for each union."""

import re

import keras
import numpy as np
import pytest
import replica_cases as cases

import oracle

BACKEND = keras.backend.backend()
UNIONS = [
    pytest.param(case, union, id=f"{case.name} {union}")
    for case in cases.GROUP_CASES
    for union in case.groups
]


def part(case, arrays, union):
    """The rows of the replicas of `union`."""
    ends = cases.ends(case.sizes)
    return np.concatenate([arrays[slice(*ends[rank])] for rank in union])


def expected(case, union):
    """Outputs, moments and gradients of the union's batch, in float64."""
    given = cases.data(case)
    x, dy, mask = (part(case, given[name], union) for name in ("x", "dy", "mask"))
    weight = oracle.weights(mask, x, case.axis, drop=-1) if case.masked else None
    r, d = case.correction or (1.0, 0.0)
    settings = {"axis": case.axis, "weight": weight, "r": r, "d": d}
    gamma, beta = (oracle.spread(given[n], x, case.axis) for n in ("gamma", "beta"))
    result = oracle.forward(x, gamma, beta, **settings)
    return x, gamma, result, oracle.backward(x, dy, gamma, **settings)


def of(found, case, union, name):
    every = found.of(case, name)
    return [every[rank] for rank in union]


def close(received, wanted, tolerance=1e-4):
    scale = max(np.abs(wanted).max(), 1.0)
    np.testing.assert_allclose(
        np.squeeze(received), np.squeeze(wanted), rtol=0, atol=tolerance * scale
    )


@pytest.mark.parametrize(("case", "union"), UNIONS)
def test_a_group_is_one_process_on_its_union(found, case, union):
    x, gamma, result, gradients = expected(case, union)
    scale = gamma * (case.correction or (1.0,))[0]
    received = np.concatenate(of(found, case, union, "y"))
    allowed = oracle.tolerance(x, result.variance, scale, dtype=case.dtype)
    assert received.shape == result.y.shape
    assert (np.abs(received - result.y) <= allowed).all()
    close(np.concatenate(of(found, case, union, "x")), gradients.x)
    close(sum(of(found, case, union, "gamma")), gradients.gamma)
    close(sum(of(found, case, union, "beta")), gradients.beta)


@pytest.mark.parametrize("name", ["count", "mean", "variance"])
@pytest.mark.parametrize(("case", "union"), UNIONS)
def test_a_group_has_the_statistics_of_its_union(found, case, union, name):
    _, _, result, _ = expected(case, union)
    first, *others = of(found, case, union, name)
    for other in others:
        np.testing.assert_array_equal(first, other)
    wanted = np.broadcast_to(getattr(result, name), result.mean.shape)
    received = np.broadcast_to(np.squeeze(first), np.squeeze(wanted).shape)
    np.testing.assert_allclose(received, np.squeeze(wanted), rtol=1e-6)


def test_moving_statistics_are_a_groups_own_or_the_average(found):
    _, x = cases.grouped_layer()
    x = x.astype("float64").reshape(2, 4, 3)  # the two pairs
    wanted = np.stack([x.mean(1), x.var(1)], axis=1)
    if BACKEND == "tensorflow":
        wanted[:] = wanted.mean(0)
    for rank, replica in enumerate(found.of_four):
        np.testing.assert_allclose(replica["layer"], wanted[rank // 2], rtol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="a mesh has axes")
def test_a_batch_that_is_the_same_along_an_axis_counts_for_each_device(found):
    halves = np.split(cases.grouped_layer()[1].astype("float64"), 2)
    expected = [2 * oracle.backward(x, 3 * oracle.forward(x).y ** 2).x for x in halves]
    close(found.of_four[0]["same along an axis"], np.concatenate(expected))


@pytest.mark.skipif(BACKEND != "jax", reason="shards of an array")
def test_a_sharded_variable_has_one_value(found):
    _, x = cases.grouped_layer()
    np.testing.assert_array_equal(found.of_four[0]["copies of shards"], x[None])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere one a process")
def test_copies_of_a_variable_are_those_of_the_replicas(found):
    assert found.of_four[0]["copies"].tolist() == [0, 1, 2, 3]


REFUSED = {name: match for name, (_, match) in cases.REFUSED.items()}
REFUSED |= {
    "jax": {
        "axes": r"name the manual axes.*Received: replica_groups=None.*data.*model",
        "axes, unchecked": r"name the manual axes.*Received.*\('data', 'model'\)",
    },
    "torch": {"this one": "which replica 3, the one that runs, is in none"},
}.get(BACKEND, {})


@pytest.mark.skipif(BACKEND != "torch", reason="FSDP is PyTorch's")
@pytest.mark.parametrize("name", ["FSDP", "HSDP"])
def test_sharded_weights_train_as_one_process(found, name):
    for replica in found.of_four:
        close(replica[f"train {name}"], found.alone["plain"], 1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="FSDP is PyTorch's")
def test_weights_that_fsdp_replaced_in_a_layer_are_refused(found):
    message = str(found.of_four[0]["refused replaced weights"])
    assert re.search(r"weights that PyTorch has replaced.*Received.*DTensor", message)


@pytest.mark.parametrize("name", REFUSED)
def test_groups_that_are_none_are_refused(found, name):
    replica = found.of_four[3 if name == "this one" else 0]
    message = str(replica[f"refused {name}"])
    assert re.search(f"Argument `replica_groups` must.*{REFUSED[name]}", message)


@pytest.mark.skipif(BACKEND != "torch", reason="the others' replicas are one process")
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", cases.TOGETHER)
def test_recalibrate_on_parts_is_one_pass_over_all(found, name, by_layer):
    for union in cases.TOGETHER[name] or [range(cases.GROUP_REPLICAS)]:
        data = cases.batches_of(union)
        wanted = cases.recalibrated_on(data, layer_by_layer=by_layer)
        for rank in union:
            received = found.of_four[rank][f"recalibrated {name} {by_layer}"]
            np.testing.assert_allclose(received, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(BACKEND != "torch", reason="the others' replicas are one process")
def test_where_one_process_fails_all_do(found):
    messages = [str(one["refused failed part"]) for one in found.of_four]
    assert "batches of the shape that the model takes" in messages[2]
    for rank in (0, 1, 3):
        assert "Received: an error in process 2 of 4" in messages[rank]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it averages at each update")
def test_average_statistics_of_all_replicas(found):
    for replica in found.of_four:
        assert replica["averaged, replicas"] == cases.GROUP_REPLICAS
        wanted = cases.averaged_state(range(cases.GROUP_REPLICAS))
        np.testing.assert_allclose(replica["averaged"], wanted, rtol=1e-6)
