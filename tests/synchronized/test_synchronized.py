"""Two replicas, each with its part of a batch, against one with the whole."""

import keras
import numpy as np
import pytest
import replica_cases as cases

import oracle

BACKEND = keras.backend.backend()
STATISTICS = 2 * 3  # moving mean and variance of three channels


SYNCHRONIZED = [*cases.CASES, *cases.WAY_CASES]


def named(table):
    return [one.name for one in table]


def expected(case):
    """Outputs and gradients of the whole batch, in float64."""
    given = cases.data(case)
    x, dy = given["x"].astype("float64"), given["dy"].astype("float64")
    gamma, beta = (oracle.spread(given[n], x, case.axis) for n in ("gamma", "beta"))
    r, d = case.correction or (1.0, 0.0)
    counts = given["mask"] if case.masked or case.weighted else None
    weight = oracle.weights(counts, x, case.axis, drop=-1)
    settings = {"axis": case.axis, "weight": weight, "r": r, "d": d}
    result = oracle.forward(x, gamma, beta, **settings)
    y = result.y
    if case.activation == "relu":
        y, dy = np.maximum(y, 0), dy * (y > 0)
    return result._replace(y=y), oracle.backward(x, dy, gamma, **settings), given


def close(received, wanted, tolerance):
    scale = max(np.abs(wanted).max(), 1.0)
    np.testing.assert_allclose(
        np.squeeze(received), np.squeeze(wanted), rtol=0, atol=tolerance * scale
    )


@pytest.mark.parametrize("case", SYNCHRONIZED, ids=named(SYNCHRONIZED))
def test_output_is_that_of_the_whole_batch(found, case):
    result, _, given = expected(case)
    received = np.concatenate(found.of(case, "y"))
    assert received.shape == result.y.shape
    gamma = oracle.spread(given["gamma"], given["x"], case.axis)
    scale = gamma * (case.correction or (1.0,))[0]
    allowed = oracle.tolerance(given["x"], result.variance, scale, dtype=case.dtype)
    if case.dtype == "bfloat16":  # the output is rounded, too
        allowed = allowed + np.abs(result.y) * 2**-8
    assert (np.abs(received - result.y) <= allowed).all()


@pytest.mark.parametrize("case", SYNCHRONIZED, ids=named(SYNCHRONIZED))
def test_statistics_are_those_of_the_whole_batch_on_every_replica(found, case):
    result, _, _ = expected(case)
    for name, wanted in (
        ("count", result.count),
        ("mean", result.mean),
        ("variance", result.variance),
    ):
        one, other = found.of(case, name)
        np.testing.assert_array_equal(one, other)
        wanted = np.broadcast_to(wanted, result.mean.shape)
        received = np.broadcast_to(np.squeeze(one), np.squeeze(wanted).shape)
        np.testing.assert_allclose(received, np.squeeze(wanted), rtol=1e-6)


@pytest.mark.parametrize("case", SYNCHRONIZED, ids=named(SYNCHRONIZED))
def test_gradient_for_x_is_that_of_the_whole_batch(found, case):
    _, gradients, _ = expected(case)
    received = np.concatenate(found.of(case, "x"))
    close(received, gradients.x, 2**-8 if case.dtype == "bfloat16" else 1e-4)


@pytest.mark.parametrize("name", ["gamma", "beta"])
@pytest.mark.parametrize("case", SYNCHRONIZED, ids=named(SYNCHRONIZED))
def test_gradients_for_parameters_add_up(found, case, name):
    _, gradients, _ = expected(case)
    close(sum(found.of(case, name)), getattr(gradients, name), 1e-4)


def test_a_backward_pass_without_the_collective_is_caught(found):
    _, gradients, _ = expected(cases.MUTATED)
    received = np.concatenate(found.of(cases.MUTATED, "x"))
    assert np.abs(received - gradients.x).max() > 1e-2 * np.abs(gradients.x).max()
    # The forward pass is as it was.
    result, _, _ = expected(cases.MUTATED)
    close(np.concatenate(found.of(cases.MUTATED, "y")), result.y, 1e-5)


@pytest.mark.parametrize("training", cases.TRAININGS, ids=named(cases.TRAININGS))
def test_training_is_that_of_one_process(found, training):
    wanted = found.alone["plain" if training.by_fit else training.name]
    received = found.replicas[0][f"train {training.name}"]
    tolerance = 2**-6 if "bfloat16" in training.dtype else 1e-5
    close(received, wanted, tolerance)


@pytest.mark.parametrize("training", cases.TRAININGS, ids=named(cases.TRAININGS))
def test_replicas_stay_equal_bit_by_bit(found, training):
    one, other = (replica[f"train {training.name}"] for replica in found.replicas)
    np.testing.assert_array_equal(one, other)


def test_without_synchronization_statistics_are_equal_where_the_engine_can(found):
    one, other = (
        replica[f"train {cases.LOCAL.name}"][-STATISTICS:] for replica in found.replicas
    )
    assert np.array_equal(one, other) == (BACKEND == "tensorflow")


def test_without_synchronization_training_differs(found):
    wanted = found.alone["plain"]
    received = found.replicas[0][f"train {cases.LOCAL.name}"]
    assert np.abs(received - wanted).max() > 1e-3


@pytest.mark.parametrize("rank", range(cases.REPLICAS))
def test_without_synchronization_each_replica_is_on_its_own(found, rank):
    case = cases.LOCAL_CASE
    given = cases.data(case)
    begin, end = cases.ends(case.sizes)[rank]
    x, dy = (given[name][begin:end].astype("float64") for name in ("x", "dy"))
    close(
        found.of(case, "y")[rank],
        oracle.forward(x, given["gamma"], given["beta"]).y,
        1e-5,
    )
    gradients = oracle.backward(x, dy, given["gamma"])
    for name in ("x", "gamma", "beta"):
        close(found.of(case, name)[rank], getattr(gradients, name), 1e-4)


def test_a_model_outside_of_its_engine_warns_once(found):
    # The cases are called outside DistributedDataParallel, which torch can see.
    assert found.collectives["warnings"] == {"torch": 1}.get(BACKEND, 0)


def test_recalibrate_takes_the_data_of_all_processes(found):
    x = cases.data_to_recalibrate()
    convolution = cases.network(cases.TRAININGS[0]).layers[0]
    inputs = keras.ops.convert_to_numpy(convolution(x)).astype("float64")
    for replica in found.replicas[: cases.PROCESSES]:
        mean, variance = replica["recalibrated"]
        np.testing.assert_allclose(mean, inputs.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance, inputs.var((0, 1, 2)), rtol=1e-6)


def test_one_gather_forward_and_one_reduction_back(found):
    counts = found.collectives
    assert counts["both"] == 2
    assert counts.get("forward", 1) == 1
