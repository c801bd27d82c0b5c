"""The studies of examples/: each runs on little data, and keeps to its protocol."""

import importlib
import json
import struct
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

import _data
import _study
import _trainer
import keras_bn
from slow import slow

STUDIES = (
    "standardization",
    "internal_distribution",
    "depth",
    "learning_rate",
    "fewer_steps",
    "placement",
    "small_batch",
    "repair",
)
RESULTS = Path(_study.RESULTS)
SCRIPT = RESULTS / "fill_readme.py"


# In Keras's words; that it trains on each backend, the study in short shows.
of_the_trainer = slow("compiles a step for each trainer", but_on="torch")
IN_SHORT = ("standardization",)
QUICK_RUNS = [
    *IN_SHORT,
    *(
        pytest.param(
            name, marks=slow("compiles a step for each architecture", but_on="torch")
        )
        for name in STUDIES
        if name not in IN_SHORT
    ),
]


@pytest.fixture(scope="module", params=QUICK_RUNS)
def quick(request, tmp_path_factory):
    """A study's name, the folder that its quick run filled, and what it returned."""
    folder = tmp_path_factory.mktemp(request.param)
    study = importlib.import_module(request.param)
    found = study.main(["--quick", "--output", str(folder)])
    return request.param, folder, found


def test_quick_run_writes_settings_machine_runs_and_summary(quick):
    name, folder, _ = quick
    document = json.loads((folder / f"{name}.json").read_text())
    module = importlib.import_module(name)
    assert document["study"] == name
    assert set(document["settings"]) == set(vars(module.QUICK))
    assert document["machine"]["keras"] == keras.__version__
    assert keras.backend.backend() in document["machine"]
    assert document["summary"]
    assert len(document["runs"]) >= 2


def test_quick_run_writes_a_picture(quick):
    name, folder, _ = quick
    content = (folder / f"{name}.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 800
    assert height >= 600


@slow("trains and adapts three times", but_on="torch")
@pytest.mark.parametrize("quick", ["repair"], indirect=True)
def test_a_lag_and_shifts_are_repaired_but_no_shift_of_the_classes(quick):
    _, folder, (lag, shift) = quick
    (_, before, report), (_, after, repaired), (_, folded, _) = lag
    assert {"lag", "far"} <= {finding.code for finding in report.findings}
    assert repaired.findings == []
    assert after > before + 0.3
    assert abs(folded - after) < 0.01
    assert shift[16, 4] > shift["none", None] + 0.1
    assert (folder / "inspect.png").stat().st_size > 1000
    accuracy = json.loads((folder / "repair.json").read_text())["summary"]["accuracy"]
    contrast, classes = (
        {arm: found["mean"] for arm, found in accuracy[name].items()}
        for name in ("contrast", "three classes")
    )
    for arm in ("new statistics", "entropy"):
        assert contrast[arm] > contrast["as trained"] + 0.02
        assert classes[arm] < classes["as trained"]


def is_choice(run):
    return "test" not in run and run.get("phase") in (None, "tuning")


CHOSEN_FROM = (
    *("rate", "choice", "seed", "depth", "batch", "family", "phase", "schedule"),
)


def choices(runs, arm):
    """Each arm's set of the rates, seeds and budgets that its choice was made from."""
    sets = {}
    for run in runs:
        if is_choice(run):
            found = tuple(run.get(name) for name in CHOSEN_FROM)
            sets.setdefault(run[arm], set()).add(found)
    return sets


def test_quick_run_gives_all_arms_the_same_grid(quick):
    name, folder, _ = quick
    document = json.loads((folder / f"{name}.json").read_text())
    arm = "norm" if name == "small_batch" else "arm"
    grids = list(choices(document["runs"], arm).values())
    assert len(grids) >= 2
    assert all(grid == grids[0] for grid in grids)


@pytest.fixture
def data():
    return _trainer.parts(_data.digits(), validation=280, halve=False)


def build(norm=keras_bn.BatchNormalization):
    return keras_bn.models.mlp(
        input_shape=(8, 8, 1), width=6, norm=norm, classifier_activation=None
    )


def ignore(steps):
    pass


@pytest.fixture
def trainer(data):
    return _trainer.Trainer(build, data, batch_size=16)


def test_parts_share_no_image(data):
    sizes = [len(data.x_train), len(data.x_validation), len(data.x_test)]
    assert sizes == [1157, 280, 360]
    everything = np.concatenate([data.x_train, data.x_validation, data.x_test])
    whole = _data.digits()
    original = np.concatenate([whole.x_train, whole.x_val])
    assert np.sort(everything.sum((1, 2, 3))) == pytest.approx(
        np.sort(original.sum((1, 2, 3)))
    )


def test_halved_images_are_means():
    whole = _data.digits()
    halved = _trainer.parts(whole, validation=280, halve=True)
    assert halved.image_shape == (4, 4, 1)
    expected = whole.x_val[0, :2, 2:4, 0].mean()
    assert halved.x_test[0, 0, 1, 0] == pytest.approx(expected)


@of_the_trainer
def test_runs_of_a_seed_are_alike_and_of_others_differ(trainer):
    run = partial(trainer.run, rate=0.1, steps=6, every=3, advance=ignore)
    first, other, again = run(seed=1), run(seed=2), run(seed=1)
    assert first["steps"] == [3, 6]
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-5)
    assert other["loss"] != pytest.approx(first["loss"], abs=1e-3)


@of_the_trainer
def test_arms_start_from_equal_kernels(trainer, data):
    plain = _trainer.Trainer(partial(build, norm=None), data, batch_size=16)
    kernels = []
    for each in (trainer, plain):
        each.restart(rate=0.1, seed=3)
        kernels.append([w for w in each.model.weights if w.name == "kernel"])
    assert len(kernels[0]) == 4
    keras.tree.map_structure(
        np.testing.assert_array_equal,
        *([keras.ops.convert_to_numpy(w) for w in weights] for weights in kernels),
    )


@of_the_trainer
def test_last_measurement_is_at_the_last_step(trainer):
    told = []
    curve = trainer.run(rate=0.1, seed=0, steps=5, every=3, advance=told.append)
    assert curve["steps"] == [3, 5]
    assert sum(told) == 5
    assert "test" not in curve


@of_the_trainer
def test_a_diverged_run_ends_and_gets_nothing_right(data):
    trainer = _trainer.Trainer(partial(build, norm=None), data, batch_size=16)
    trainer.model.get_layer("classes").activation = keras.ops.exp
    told = []
    curve = trainer.run(
        rate=1e30, seed=0, steps=50, every=5, advance=told.append, test=True
    )
    assert curve["diverged"]
    assert curve["loss"][-1] is None
    assert curve["accuracy"][-1] == curve["test"] == 0
    assert curve["steps"][-1] < 50
    assert sum(told) == 50


@of_the_trainer
def test_a_falling_rate_falls_towards_zero(trainer, monkeypatch):
    rates = []
    rate_of = trainer.model.optimizer.learning_rate
    fit = trainer._fit

    def noting(batches):
        rates.append(float(keras.ops.convert_to_numpy(rate_of)))
        return fit(batches)

    monkeypatch.setattr(trainer, "_fit", noting)
    curve = trainer.run(
        rate=0.5, seed=0, steps=200, every=200, falling=True, advance=ignore
    )
    assert curve["steps"] == [200]
    assert rates == pytest.approx(np.linspace(0.5, 0.025, 20))


@of_the_trainer
def test_patience_ends_a_run_that_does_not_improve(data):
    trainer = _trainer.Trainer(partial(build, norm=None), data, batch_size=16)
    curve = trainer.run(
        rate=0.0, seed=0, steps=50, every=5, patience=10, advance=ignore
    )
    assert curve["steps"] == [5, 10, 15]


def test_spread():
    found = _study.spread([1.0, 3.0])
    assert found["mean"] == 2
    assert found["deviation"] == pytest.approx(2**0.5, abs=1e-5)


@dataclass(frozen=True)
class Settings:
    rate: float = 1.0


def start(folder, settings):
    arguments = ["--output", str(folder)]
    return _study.Study("some", "A story.", arguments, settings, settings)


def test_a_second_start_goes_on_where_the_first_ended(tmp_path):
    start(tmp_path, Settings()).run(lambda: {"loss": 1.0}, arm="a")
    second = start(tmp_path, Settings())
    assert second.run(pytest.fail, arm="a")["loss"] == 1.0
    assert second.run(lambda: {"loss": 2.0}, arm="b")["loss"] == 2.0
    runs = json.loads((tmp_path / "some.json").read_text())["runs"]
    assert [run["arm"] for run in runs] == ["a", "b"]


def test_runs_of_other_settings_are_not_taken_over(tmp_path):
    start(tmp_path, Settings()).run(lambda: {"loss": 1.0}, arm="a")
    other = start(tmp_path, Settings(rate=2.0))
    assert other.run(lambda: {"loss": 3.0}, arm="a")["loss"] == 3.0


def committed(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.once
@pytest.mark.parametrize("name", STUDIES)
def test_committed_results_are_of_the_settings_in_the_script(name):
    settings = importlib.import_module(name).Settings()
    expected = json.loads(json.dumps(_study.asdict(settings)))
    document = committed(name)
    assert document["settings"] == expected
    assert document["summary"]
    assert document["seconds"] < 3600


@pytest.mark.once
@pytest.mark.parametrize("name", STUDIES)
def test_committed_arms_had_the_same_grid(name):
    arm = "norm" if name == "small_batch" else "arm"
    grids = list(choices(committed(name)["runs"], arm).values())
    assert len(grids) >= 2
    assert all(grid == grids[0] for grid in grids)


@pytest.mark.once
@pytest.mark.parametrize("name", [x for x in STUDIES if x != "standardization"])
def test_committed_tests_are_of_three_seeds_that_chose_nothing(name):
    document = committed(name)
    tuning_seed = document["settings"].get("tuning_seed")
    tested = {run["seed"] for run in document["runs"] if "test" in run}
    chosen = {
        run.get("seed", tuning_seed) for run in document["runs"] if is_choice(run)
    }
    assert len(tested) == 3
    assert not tested & chosen


@pytest.mark.once
def test_the_table_is_of_the_committed_results():
    check = [sys.executable, str(SCRIPT), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
