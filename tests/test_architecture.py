"""The import rules of the package, read from its source. The tables are the rules."""

import ast
import functools
import importlib
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]

# A part is a folder or a module directly in keras_bn/, "keras_bn" its __init__.py.
# Each row: the other parts that it may import.
MAY_IMPORT = {
    "keras_bn": {"layers", "models", "ops", "backend", "tools", "callbacks"},
    "models": {"layers"},
    "layers": {"ops", "_keras"},
    "ops": {"backend"},
    "backend": {"_keras", "_private"},
    "tools": {"layers", "ops", "_keras"},
    "_keras": {"_private"},
    "_private": set(),
    "callbacks": {"tools"},
    "cli": {"tools", "benchmark", "_files", "_exchange"},
    "_exchange": {"tools", "_files"},
    "_files": {"tools"},
    "__main__": {"cli"},
    # Its report names the version of the package; it trains a whole model.
    "benchmark": {"keras_bn", "layers", "models", "tools", "backend", "_files"},
}

FRAMEWORKS = ("tensorflow", "jax", "torch")

# The packages, other than Keras and NumPy, that a module or those under it may import.
OUTSIDE = {
    # A file of a framework's says so in its name.
    **{
        f"keras_bn.backend.{file.stem}": {name}
        for name in FRAMEWORKS
        for file in (ROOT / "keras_bn" / "backend").glob(f"{name}_*.py")
    },
    **{
        f"keras_bn.backend.torch_triton{part}": {"triton"}
        for part in ("", "_statistics", "_tiles")
    },
    "keras_bn.benchmark": {"matplotlib", "rich"},
    "keras_bn.tools._foreign.checkpoint": {"torch", "safetensors"},
    "keras_bn.tools.from_flax": {"flax"},
    "keras_bn.tools._reports.plot": {"matplotlib"},
    "keras_bn.tools._reports.table": {"rich"},
    "keras_bn.tools._reports.progress": {"rich"},
    "keras_bn.tools._reports.inspection": {"rich"},
}
# Flax's layer is one of those that the benchmark compares ours with.
OUTSIDE["keras_bn.backend.jax_timing"].add("flax")

# What knows the formats and the names of other libraries, whatever the backend.
FORMATS = {
    "keras_bn._exchange",
    "keras_bn.tools._foreign.checkpoint",
    "keras_bn.tools._foreign.names",
    "keras_bn.tools.from_torch",
    "keras_bn.tools.to_torch",
    "keras_bn._keras",  # what Keras itself calls so
}

# The files that may use names which are not public in another package, and why. Of
# `keras_bn` tests/test_private_names.py says what is lost with each of the names.
PRIVATE_IN = {
    "keras_bn._private": "looks them up",
    "keras_bn._keras": "Keras's",
    **{f"keras_bn.backend.{name}_private": name for name in FRAMEWORKS},
    "tests.test_architecture": "what is caught, below",
    "tests.test_private_names": "looks whether they are there",
    "tests.test_keras_own": "Keras's own tests, by their module",
    "tests.conftest": "sets Keras's seeds without an import of TensorFlow for it",
    "tests.cases_tools": "blocks of keras.applications, in small networks",
    "tests.tools.test_layouts": "a block of keras.applications",
    "tests.tools.test_copies": "looks that a copy leaves no mark on Keras's objects",
    "tests.tools.test_fold_inside": "the same of what is followed",
    "tests.synchronized.replicas_tensorflow": "two strategies in one process",
    "tests.transformations.in_torch": "fake tensors",
    "docs.gpu.fake_cuda": "fake tensors",
    "docs.gpu.launches": "what PyTorch's dispatcher is asked for",
    "docs.gpu.inductor": "what Inductor schedules",
    "docs.gpu.xla_h100": "XLA's compiler alone",
}

PUBLIC = {
    "keras_bn": [
        "BatchNormalization",
        "ConditionalBatchNormalization",
        "DomainBatchNormalization",
        "__version__",
        "average_statistics",
        "backend",
        "callbacks",
        "convert",
        "fold",
        "from_flax",
        "from_haiku",
        "from_torch",
        "inspect",
        "layers",
        "models",
        "no_update",
        "ops",
        "quantize_aware",
        "recalibrate",
        "to_torch",
        "tools",
    ],
    "keras_bn.backend": ["Service", "describe"],
    "keras_bn.benchmark": [
        "Case",
        "Missing",
        "Result",
        "Row",
        "Timing",
        "interleaved",
        "run_case",
    ],
    "keras_bn.callbacks": ["Monitor", "Recalibrate"],
    "keras_bn.layers": [
        "BatchNormalization",
        "ConditionalBatchNormalization",
        "DomainBatchNormalization",
        "no_update",
    ],
    "keras_bn.models": [
        "inception_bn",
        "lenet5",
        "mlp",
        "plain_cnn",
        "resnet",
        "vgg",
    ],
    "keras_bn.ops": [
        "Moments",
        "batch_norm_inference",
        "batch_norm_train",
        "merge_moments",
        "moving_average",
        "renorm_correction",
        "statistics_dtype",
    ],
    "keras_bn.tools": [
        "AverageReport",
        "Averaged",
        "Finding",
        "FoldReport",
        "Folding",
        "Inspection",
        "LayerReport",
        "Matching",
        "Pair",
        "Recalibrated",
        "RecalibrationReport",
        "average_statistics",
        "convert",
        "fold",
        "from_flax",
        "from_haiku",
        "from_torch",
        "inspect",
        "match_flax",
        "match_haiku",
        "match_torch",
        "quantize_aware",
        "recalibrate",
        "to_torch",
    ],
}

SAYS_NOTHING = {"common", "helper", "helpers", "misc", "util", "utils"}


class Module:
    def __init__(self, name, tree):
        self.name = name
        self.part = part(name)
        self.nodes = list(ast.walk(tree))
        self.tree = tree

    @functools.cached_property
    def imports(self):
        """All that it imports, dotted in full: `from a import b` is `a.b`."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # A relative import counts as one of an unknown part: none is needed.
                base = "." * node.level + (node.module or "")
                found += [f"{base}.{alias.name}" for alias in node.names]
        return found

    @functools.cached_property
    def strings(self):
        """Its string constants; not its docstrings, which may name a framework."""
        alone = {id(node.value) for node in self.nodes if isinstance(node, ast.Expr)}
        texts = (node for node in self.nodes if is_text(node))
        return [node.value for node in texts if id(node) not in alone]

    @functools.cached_property
    def names(self):
        """Every identifier, and every dotted chain of them, in its code."""
        kinds = (ast.Name, ast.Attribute)
        return {ast.unparse(node) for node in self.nodes if isinstance(node, kinds)}


@functools.cache
def module_at(path):
    return Module(module_name(path), ast.parse(path.read_text()))


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def part(name):
    return name.split(".")[1] if "." in name else name


def is_package(name):
    return name.partition(".")[0] == "keras_bn"


def other_parts(module):
    """A part imports only the parts below it."""
    allowed = {module.part, *MAY_IMPORT.get(module.part, ())}
    if module.part not in MAY_IMPORT:
        yield f"part {module.part!r} has no row in MAY_IMPORT"
    for name in module.imports:
        if name.startswith(".") or (is_package(name) and part(name) not in allowed):
            yield f"imports {name}; allowed parts: {sorted(allowed)}"


def other_packages(module):
    """Keras and NumPy everywhere; a framework in its own files only."""
    allowed = {"", "keras", "numpy", "keras_bn", *sys.stdlib_module_names}
    for owner, packages in OUTSIDE.items():
        if f"{module.name}.".startswith(f"{owner}."):
            allowed |= packages
    for name in module.imports:
        if name.partition(".")[0] not in allowed:
            yield f"imports {name}"


def framework_files(module):
    """Only keras_bn.backend chooses a framework's file, or imports a computed name."""
    if module.name == "keras_bn.backend":
        return
    for name in module.imports:
        if re.search(r"\w_(kernels|timing)\b", name):
            yield f"imports {name}"
    for name in module.names:
        # The command line imports what its user names.
        named = module.name in ("keras_bn._files", "keras_bn._private")
        if not named and re.search("__import__|import_module$|resolve_name$", name):
            yield f"uses {name}"


def backend_name(module):
    """Only keras_bn.backend asks which backend Keras runs on."""
    if module.name == "keras_bn.backend":
        return
    for name in module.imports:
        if name in ("keras.backend.backend", "keras.config.backend"):
            yield f"imports {name}"
    for node in module.nodes:
        if isinstance(node, ast.Call) and re.search(
            r"(backend|config)\.backend$", ast.unparse(node.func)
        ):
            yield f"calls {ast.unparse(node)}"
    if "KERAS_BACKEND" in module.strings:
        yield "reads KERAS_BACKEND"


def framework_names(module):
    """Outside keras_bn/backend/ no code and no message names a framework."""
    if module.part == "backend" or module.name in FORMATS:
        return
    for text in (*module.strings, *module.names):
        if not re.search("(from|match|to)_torch$", text) and re.search(
            r"tensorflow|\bjax|torch", text, re.IGNORECASE
        ):
            yield f"names a framework: {text!r}"


NOT_PUBLIC = re.compile(
    r"(keras|jax)\.(_?src)\b|\btensorflow\.python\b|\b(torch|jaxlib)(\.\w+)*\._[a-zA-Z]"
)
ATTRIBUTE = re.compile(r"_[a-zA-Z]\w*")
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


def private_modules(module):
    """What is not public in another package is used in the files for that only."""
    if module.name in PRIVATE_IN:
        return
    for name in {*module.imports, *module.names, *module.strings}:
        if NOT_PUBLIC.search(name):
            yield f"uses {name}"


@functools.cache
def of_keras():
    """The attributes that Keras gives its layers, models, graphs and tensors."""
    import keras

    x = keras.Input((1,))
    objects = (keras.layers.Layer(), keras.Model(x, x), keras.Sequential(), x)
    objects += (keras.Variable([0.0]), keras.optimizers.SGD())
    every = {name for one in objects for name in dir(one)} | {"_keras_mask"}
    return {name for name in every if ATTRIBUTE.fullmatch(name)}


@functools.cache
def of_this_package():
    """The private names that this package itself defines anywhere."""
    return {
        name
        for folder in ("keras_bn", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if module_name(path) not in PRIVATE_IN
        for node in module_at(path).nodes
        for name in defined(node)
    }


def defined(node):
    """What a node gives a name to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.id if isinstance(node, ast.Name) else node.attr
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.rpartition(".")[2]


def private_attributes(module):
    """No attribute is used that only Keras, or a framework, knows of."""
    if module.name in PRIVATE_IN:
        return
    ours = of_this_package() | OF_NAMED_TUPLES
    # A name of a layer's own must not be one that Keras gives it, either.
    is_layer = module.part == "layers" or any(
        ast.unparse(base).startswith("keras.")
        for node in module.nodes
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    )
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and ATTRIBUTE.fullmatch(node.attr):
            of_itself = not is_layer and ast.unparse(node.value) in ("self", "cls")
            if node.attr not in ours or (not of_itself and node.attr in of_keras()):
                yield f"uses {ast.unparse(node)}"
        of_call = isinstance(node, ast.Call) and len(node.args) > 1
        if of_call and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            text = ast.literal_eval(node.args[1]) if is_text(node.args[1]) else ""
            if ATTRIBUTE.fullmatch(text) and (text not in ours or text in of_keras()):
                yield f"names {text!r}"


def attributes_of_keras(module):
    """A test looks at Keras's objects by what is public of them, or by `_keras`."""
    if module.name in PRIVATE_IN:
        return
    foreign = of_keras() - of_this_package()
    for node in module.nodes:
        used = isinstance(node, ast.Attribute) and node.attr in foreign
        if used and ast.unparse(node.value) != "self":
            yield f"uses {ast.unparse(node)}"


def docstring(module):
    """Every module says what it is for."""
    if not ast.get_docstring(module.tree):
        yield "has no docstring"


def telling_name(module):
    """A file is named after what it holds."""
    if module.name.rpartition(".")[2].strip("_") in SAYS_NOTHING:
        yield f"is named {module.name}"


def public_only(module):
    """An example uses what a user may use."""
    public = set(PUBLIC) | {f"{p}.{n}" for p, names in PUBLIC.items() for n in names}
    for name in (*module.imports, *module.names):
        if not is_package(name):
            continue
        # Of `keras_bn.BatchNormalization.from_config` the first two are the package's.
        owned = name
        while owned.rpartition(".")[0] not in ("", *PUBLIC):
            owned = owned.rpartition(".")[0]
        if owned not in public:
            yield f"uses {name}"


FOR_ALL = [docstring, telling_name, private_modules]
RULES = {
    "keras_bn": [
        other_parts,
        other_packages,
        framework_files,
        backend_name,
        framework_names,
        private_attributes,
        *FOR_ALL,
    ],
    "examples": [public_only, private_attributes, *FOR_ALL],
    "tests": [attributes_of_keras, *FOR_ALL],
    "docs": FOR_ALL,
}
FILES = [
    (path, rule)
    for folder, rules in RULES.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
    for rule in rules
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize(
    ("path", "rule"),
    FILES,
    ids=[f"{path.relative_to(ROOT)}-{rule.__name__}" for path, rule in FILES],
)
def test_rule(path, rule):
    assert list(rule(module_at(path))) == [], rule.__doc__


@pytest.mark.parametrize("folder", RULES)
def test_every_folder_has_files(folder):
    assert [path for path, _ in FILES if path.is_relative_to(ROOT / folder)]


VIOLATIONS = [
    (other_parts, "keras_bn.ops.batch_norm", "from keras_bn.layers import x"),
    (other_parts, "keras_bn.ops.batch_norm", "from keras_bn import layers"),
    (other_parts, "keras_bn.backend.reference", "import keras_bn.ops"),
    (other_parts, "keras_bn.layers.x", "from keras_bn.backend import kernels"),
    (other_parts, "keras_bn.layers.x", "import keras_bn"),
    (other_parts, "keras_bn.layers.x", "from ..backend import kernels"),
    (other_parts, "keras_bn.layers.x", "def f():\n    import keras_bn.cli"),
    (other_parts, "keras_bn.models.x", "from keras_bn.ops import batch_norm_train"),
    (other_parts, "keras_bn.models.x", "from keras_bn import tools"),
    (other_parts, "keras_bn.layers.x", "from keras_bn.models import resnet"),
    (other_parts, "keras_bn.new_part", ""),
    (other_packages, "keras_bn.layers.x", "import tensorflow as tf"),
    (other_packages, "keras_bn.backend", "def f():\n    from jax import numpy"),
    (other_packages, "keras_bn.backend.jax_kernels", "import torch"),
    (other_packages, "keras_bn.ops.x", "import scipy.stats"),
    (other_packages, "keras_bn.benchmarks", "import rich"),
    (framework_files, "keras_bn.ops.x", "from keras_bn.backend import jax_kernels"),
    (framework_files, "keras_bn.ops.x", "import keras_bn.backend.jax_kernels"),
    (framework_files, "keras_bn.ops.x", "from keras_bn.backend import jax_timing"),
    (framework_files, "keras_bn.ops.x", "import importlib\nimportlib.import_module(x)"),
    (framework_files, "keras_bn.ops.x", "__import__('jax')"),
    (backend_name, "keras_bn.ops.x", "import keras\nkeras.backend.backend()"),
    (backend_name, "keras_bn.ops.x", "from keras import backend\nbackend.backend()"),
    (backend_name, "keras_bn.ops.x", "from keras.backend import backend"),
    (backend_name, "keras_bn.ops.x", "import keras\nkeras.config.backend()"),
    (backend_name, "keras_bn.ops.x", "import os\nos.environ['KERAS_BACKEND']"),
    (framework_names, "keras_bn.layers.x", "name == 'torch'"),
    (framework_names, "keras_bn.layers.x", "raise ValueError(f'not on JAX: {x}')"),
    (framework_names, "keras_bn.layers.x", "torch_mean = 0"),
    (private_modules, "keras_bn.ops.x", "from keras.src.backend import get_keras_mask"),
    (private_modules, "keras_bn.ops.x", "from jax._src import core"),
    (private_modules, "keras_bn.ops.x", "import tensorflow.python.eager.record"),
    (private_modules, "tests.x", "from torch._subclasses import fake_tensor"),
    (private_modules, "keras_bn.ops.x", "import torch\ntorch._C.f()"),
    (private_modules, "docs.x", "resolve('keras.src.ops.node:Node')"),
    (private_attributes, "keras_bn.tools.x", "layer._inbound_nodes"),
    (private_attributes, "keras_bn.tools.x", "layer._layers"),
    (private_attributes, "keras_bn.tools.x", "getattr(layer, '_functional', None)"),
    (private_attributes, "keras_bn.tools.x", "tensor._trace"),
    (private_attributes, "keras_bn.tools.x", "import sys\nsys._getframe()"),
    (private_attributes, "examples.x", "model._nodes_by_depth"),
    (private_attributes, "keras_bn.layers.x", "self._layers"),
    (attributes_of_keras, "tests.x", "model._flatten_layers()"),
    (docstring, "keras_bn.ops.x", "# A comment is not a docstring."),
    (telling_name, "keras_bn.layers._utils", ""),
    (telling_name, "examples.helpers", ""),
    (public_only, "examples.x", "from keras_bn.backend import reference"),
    (public_only, "examples.x", "from keras_bn.ops.renorm import renorm_correction"),
    (public_only, "examples.x", "import keras_bn\nkeras_bn.ops._arguments.f()"),
    (public_only, "examples.x", "import keras_bn\nkeras_bn.backend.reference.moments"),
]

ALLOWED = [
    (other_parts, "keras_bn.layers.x", "from keras_bn.ops import batch_norm_train"),
    (other_parts, "keras_bn.ops.x", "from keras_bn.ops import _arguments"),
    (other_parts, "keras_bn.benchmark.x", "from keras_bn.models import resnet"),
    (other_packages, "keras_bn.backend.jax_kernels", "import jax.numpy as jnp"),
    (other_packages, "keras_bn.ops.x", "import math\nfrom keras import ops"),
    (framework_files, "keras_bn.backend", "import_module('jax')"),
    (framework_files, "keras_bn.ops.x", "from keras_bn.backend import timing"),
    (framework_files, "keras_bn._files", "importlib.import_module(x)"),
    (private_modules, "keras_bn._keras", "resolve('keras.src.ops.node:Node')"),
    (private_modules, "keras_bn.ops.x", "import torch\ntorch.nn.functional.relu_"),
    (private_attributes, "keras_bn.tools.x", "self._layers = row._replace(a=1)"),
    (private_attributes, "keras_bn.tools.x", "statistics._layer, given._asdict()"),
    (framework_names, "keras_bn", "from keras_bn.tools import from_torch"),
    (framework_names, "keras_bn.tools.from_torch", "TORCH_EPSILON = 1e-5"),
    (other_packages, "keras_bn.benchmark.report", "import rich"),
    (backend_name, "keras_bn.backend", "import keras\nkeras.backend.backend()"),
    (backend_name, "keras_bn.ops.x", "from keras import backend\nbackend.epsilon()"),
    (framework_names, "keras_bn.layers.x", '"""PyTorch keeps the rest."""'),
    (framework_names, "keras_bn.backend", "'jax'"),
    (public_only, "examples.x", "import keras_bn\nkeras_bn.ops.moving_average(a, b)"),
    (public_only, "examples.x", "import keras_bn\nkeras_bn.BatchNormalization.build"),
    (public_only, "examples.x", "from keras_bn import BatchNormalization, ops"),
]


def named(table):
    rules = [rule for rule, *_ in table]
    return [f"{r.__name__}-{rules[:i].count(r)}" for i, r in enumerate(rules)]


@pytest.mark.parametrize(("rule", "name", "code"), VIOLATIONS, ids=named(VIOLATIONS))
def test_a_violation_is_caught(rule, name, code):
    assert list(rule(Module(name, ast.parse(code))))


@pytest.mark.parametrize(("rule", "name", "code"), ALLOWED, ids=named(ALLOWED))
def test_what_is_allowed_passes(rule, name, code):
    assert not list(rule(Module(name, ast.parse(code))))


def public_packages():
    names = (module_name(p) for p in (ROOT / "keras_bn").rglob("__init__.py"))
    return sorted(name for name in names if "._" not in name)


@pytest.mark.parametrize("package", public_packages())
def test_public_names(package):
    assert importlib.import_module(package).__all__ == PUBLIC[package]


@pytest.mark.parametrize(
    ("package", "name"), [(p, n) for p, names in PUBLIC.items() for n in names]
)
def test_public_name_exists(package, name):
    assert hasattr(importlib.import_module(package), name)
