"""How docs/gpu/hlo.py counts what XLA has scheduled, on a program counted by hand."""

import importlib.util
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
