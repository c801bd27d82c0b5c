"""int8 after training: LiteRT, onnxruntime and Keras's own `quantize`."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_bn
import quantization
from cases_tools import images, randomize
from slow import slow

L = keras.layers
BACKEND = keras.backend.backend()
MODELS, RUNTIMES = tuple(quantization.MODELS), tuple(quantization.RUNTIMES)
if BACKEND != "tensorflow":
    RUNTIMES = ("onnxruntime",)
    MODELS = tuple(name for name in MODELS if "a step a kernel" not in name)
if BACKEND == "jax":
    # What is exported there unfolded is not fused: the page says to fold first.
    MODELS = ("Keras's layer", "folded", "quantize-aware")
UNTRAINED = ("Keras's layer", "this package's")
ON_TORCH = slow("trains three models and exports them all", but_on="torch")
ALL = [
    pytest.param((MODELS, RUNTIMES), runtime, id=runtime, marks=ON_TORCH)
    for runtime in RUNTIMES
]
# The runtime that TensorFlow alone has.
LITERT = [pytest.param((UNTRAINED, ("LiteRT",)), "LiteRT", id="LiteRT, untrained")]


def of_rows(parameters):
    """What is measured once for all tests of it, which a parameter else prevents."""
    return pytest.mark.parametrize(
        ("rows", "runtime"), parameters, indirect=["rows"], scope="module"
    )


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory):
    """What `examples/quantization.py` measures after a short training."""
    models, runtimes = request.param
    folder = tmp_path_factory.mktemp("quantization")
    page = folder / "page.md"
    page.write_text(f"before\n{quantization.START}\nstale\n{quantization.END}\nafter\n")
    rows = quantization.main(
        [
            *("--epochs", "2", "--page", str(page)),
            *("--models", *models, "--runtimes", *runtimes),
        ]
    )
    assert quantization.table(rows) in page.read_text()
    assert "stale" not in page.read_text()
    return {(row.model, row.runtime): row for row in rows}


@of_rows([*(LITERT if BACKEND == "tensorflow" else ()), *ALL])
def test_int8_costs_no_more_than_with_the_layer_of_keras(rows, runtime):
    keras_own = rows["Keras's layer", runtime]
    for model in {"this package's", "folded"} & {model for model, _ in rows}:
        row = rows[model, runtime]
        assert row.mean_error <= 1.1 * keras_own.mean_error + 1e-4
        assert row.kilobytes <= 1.02 * keras_own.kilobytes
        assert row.accuracy >= keras_own.accuracy - 0.02


@of_rows(ALL)
def test_what_was_trained_with_rounding_is_what_is_deployed(rows, runtime):
    steps = ", a step a kernel" if "a step a kernel" in runtime else ""
    row = rows[f"quantize-aware{steps}", runtime]
    assert row.accuracy >= row.exact_accuracy - 0.015
    assert row.mean_error < 0.05


@slow("trains and compiles two models", but_on="torch")
def test_the_page_runs():
    page = Path(quantization.__file__).parents[1] / "docs" / "quantization.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(blocks) == 2
    names = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert not any("norm" in layer.name for layer in names["deployed"].layers)


def _small(layers):
    model = keras.Sequential([keras.Input((6, 6, 3)), *layers])
    return randomize(model)


def _run(model, x):
    # Not by `predict`, which JAX compiles anew for each model; operations it keeps.
    return keras.ops.convert_to_numpy(model(x))


LAYERS = {
    "conv": lambda: [L.Conv2D(8, 3), keras_bn.BatchNormalization(), L.ReLU()],
    # One that is quantized: Keras looks for garbage as it replaces each kernel.
    "dense": lambda: [
        *(L.Flatten(), L.Dense(8), keras_bn.BatchNormalization(activation="relu")),
    ],
}


@pytest.mark.usefixtures("zero_kernels")
@pytest.mark.parametrize(
    ("case", "mode"),
    [
        *(("conv", "int8"), ("dense", "int8")),
        *(
            pytest.param(
                *("dense", mode),
                marks=slow("operations that JAX compiles one by one", but_on="torch"),
            )
            for mode in ("int4", "float8")
        ),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize",
    "ignore:`model.quantize.*were skipped",  # the same, since Keras 3.16
)
def test_the_quantization_of_keras_holds(case, mode, tmp_path):
    model = _small(LAYERS[case]())
    theirs = keras_bn.convert(model, to="keras")
    x = images(16, 6, 6, 3)
    exact = _run(model, x)
    for one in (model, theirs):
        one.quantize(mode)
    y = _run(model, x)
    np.testing.assert_allclose(y, _run(theirs, x), atol=1e-5)
    tolerance = {"int8": 0.05, "int4": 0.5, "float8": 0.1}[mode]
    assert np.abs(y - exact).mean() < tolerance * np.abs(exact).max()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(_run(loaded, x), y)
    if case == "dense":
        with pytest.raises(ValueError, match="`model` must not be quantized"):
            keras_bn.quantize_aware(model)
