"""How docs/gpu/hlo.py counts what XLA has scheduled, on a program counted by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

DOCS = Path(__file__).parents[1] / "docs"

PROGRAM = """
HloModule step, is_scheduled=true

%sliced (p.0: f32[16,100], p.1: f32[16,100]) -> f32[100] {
  %p.0 = f32[16,100]{1,0} parameter(0)
  %p.1 = f32[16,100]{1,0} parameter(1)
  %s.0 = f32[1,100]{1,0} slice(%p.0), slice={[0:1], [0:100]}
  %r.0 = f32[16,100]{1,0} multiply(%p.1, %p.1)
  ROOT %b.0 = f32[100]{0} bitcast(%s.0)
}

%then (t: bf16[10]) -> bf16[10] {
  %t = bf16[10]{0} parameter(0)
  ROOT %n = bf16[10]{0} negate(%t)
}

ENTRY %main (x: f32[16,100], h: bf16[10]) -> f32[100] {
  %x = f32[16,100]{1,0} parameter(0)
  %h = bf16[10]{0} parameter(1)
  %y = f32[16,100]{1,0} add(%x, %x)
  %c = bf16[10]{0} call(%h), to_apply=%then
  ROOT %f = f32[100]{0} fusion(%x, %y), kind=kLoop, calls=%sliced
}
"""


@pytest.fixture(scope="module")
def hlo():
    spec = importlib.util.spec_from_file_location("hlo", DOCS / "gpu" / "hlo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_what_a_program_reads_and_writes(hlo):
    found = hlo.counts(PROGRAM)
    whole, row, half = 16 * 100 * 4, 100 * 4, 10 * 2
    assert found.kernels == 3
    # x once for the sum; in the fusion, one row of x and all of y; in the call, h.
    assert found.read == whole + (row + whole) + half
    assert found.written == whole + row + half
    assert found.passes(whole) == pytest.approx(
        (3 * whole + 2 * row + 2 * half) / whole
    )


def test_text_that_is_no_program_is_refused(hlo):
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.counts("HloModule nothing")


def counts(backend, way, layer):
    """The rows of docs/measurements for a layer, by dtype."""
    path = DOCS / "measurements" / f"passes-{backend}.json"
    rows = json.loads(path.read_text())["rows"]
    found = {
        row["dtype"]: row
        for row in rows
        if (row["way"], row["contender"]) == (way, layer)
    }
    assert set(found) == {"float32", "bfloat16"}
    return found


# The most passes that a training step may take, in float32 and bfloat16.
@pytest.mark.parametrize(
    ("backend", "way", "layer", "most"),
    [
        ("torch", "eager", "keras_bn", (8.3, 8.5)),
        ("torch", "eager", "keras_bn + relu", (8.3, 8.5)),
        ("torch", "compiled", "keras_bn", (8.2, 8.2)),
        ("torch", "compiled", "keras_bn + relu", (9.0, 10.0)),
        ("jax", "XLA", "keras_bn", (7.1, 7.1)),
        ("jax", "XLA", "keras_bn + relu", (7.1, 7.1)),
        ("jax", "XLA", "net of three, keras_bn", (36.4, 36.4)),
        ("tensorflow", "XLA", "keras_bn", (7.1, 7.1)),
        ("tensorflow", "XLA", "keras_bn + relu", (8.1, 8.1)),
    ],
)
def test_a_step_counted_for_a_gpu_keeps_its_limits(backend, way, layer, most):
    ours = counts(backend, way, layer)
    keras = counts(backend, way, layer.replace("keras_bn", "keras"))
    for (dtype, row), limit in zip(ours.items(), most, strict=True):
        assert row["passes"] <= limit
        assert not row["uploads"]
        assert not row["waits"]
        assert not row.get("graph_breaks")
        for what in ("kernels", "saved", "temporary"):
            if row.get(what) is not None:
                # To what the table shows: a workspace of some bytes is no tensor.
                assert round(row[what], 2) <= round(keras[dtype][what] + 0.01, 2)
