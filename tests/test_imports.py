"""`import keras_bn` is light, and all that `load_model` needs."""

import json
import sys

import keras
import pytest

import fresh_process
import keras_bn
from slow import slow

# What each file may import, tests/test_architecture.py reads on any backend.
pytestmark = slow("a new process and a framework", but_on="torch")

FRAMEWORKS = {"tensorflow", "jax", "torch", "flax", "openvino"}
OPTIONAL = {"matplotlib", "sklearn", "rich", "scipy", "pandas"}

# Keras itself imports some of these where they are installed, so after `import keras`
# they are taken out of `sys.modules` again, to see who asks for them then.
ASK = """
import json, sys

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            asked.append(name)
            raise ImportError(f"{name} was asked for")

statements, forbidden = json.loads(sys.argv[1])
import keras
for name in list(sys.modules):
    if name.partition(".")[0] in forbidden:
        del sys.modules[name]
sys.meta_path.insert(0, Recorder())
answers = {}
for statement in statements:
    asked, before, result = [], set(sys.modules), None
    try:
        exec(statement)
    except ImportError:
        pass  # It is in `asked`, which says more.
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    answers[statement] = {"asked": asked, "new": sorted(new), "result": result}
print(json.dumps(answers))
"""
OURS = "import keras_bn"
LOAD = """
import numpy as np
model = keras.models.load_model(sys.argv[2])
result = model.predict(np.ones((1, 2)), verbose=0).tolist()
"""
GUARDED = "try:\n import matplotlib.pyplot\nexcept ImportError: pass"


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each statement asks for of the forbidden, brings, and comes to."""
    model = keras.Sequential([keras.Input((2,)), keras_bn.BatchNormalization()])
    path = tmp_path_factory.mktemp("imports") / "model.keras"
    model.save(path)
    forbidden = (FRAMEWORKS | OPTIONAL) - {keras.backend.backend()}
    question = json.dumps([[OURS, LOAD, GUARDED], sorted(forbidden)])
    output = fresh_process.run(["-c", ASK, question, path], keras.backend.backend())
    return json.loads(output.splitlines()[-1])


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = sys.argv[1]
sys.meta_path.insert(0, Missing())
try:
    import keras_bn.cli
except ModuleNotFoundError as error:
    print(error.name, error.__suppress_context__, error)
"""


@pytest.mark.parametrize("missing", ["tensorflow", "numpy"])
def test_where_keras_finds_no_framework_the_variable_is_named(missing):
    said = fresh_process.run(["-c", WITHOUT, missing], "tensorflow").splitlines()[-1]
    expected = f"{missing} {missing == 'tensorflow'} "
    assert said.startswith(expected)
    assert ("KERAS_BACKEND" in said) == (missing == "tensorflow")


def test_no_other_framework_and_no_optional_package_is_asked_for(answers):
    assert answers[OURS]["asked"] == []


def test_nothing_but_the_package_and_the_framework_is_imported(answers):
    standard = {keras.backend.backend(), *sys.stdlib_module_names}
    assert set(answers[OURS]["new"]) - standard == {"keras_bn"}


def test_loading_a_model_needs_only_the_import(answers):
    # gamma 1, beta 0, moving mean 0, moving variance 1.
    expected = (1 + 1e-3) ** -0.5
    assert answers[LOAD]["result"] == [pytest.approx([expected] * 2)]


def test_a_forbidden_import_is_seen_even_if_guarded(answers):
    assert answers[GUARDED]["asked"] == ["matplotlib"]
