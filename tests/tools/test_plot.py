"""The figure of an inspection: what it shows, not how large its letters are."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from keras_bn.tools._reports.findings import Finding
from keras_bn.tools._reports.inspection import Inspection, LayerReport
from keras_bn.tools._reports.plot import BAD, LINE, WARN

pytestmark = pytest.mark.once
ROW = LayerReport(
    *("norm", "keras_bn", -1, 4, 0.9, 1e-3, True, 9, (0.5, 1.0, 2.0), None, None)
)


@pytest.fixture
def axes_of(monkeypatch):
    """`axes_of(rows)` draws, and gives the axes of the figure."""

    def draw(rows):
        saved = []
        monkeypatch.setattr(Figure, "savefig", lambda *one, **how: saved.append(one))
        found = [Finding("norm", "lag", "warning", "", "")]
        Inspection("net", rows, found, None).plot("figure.png")
        ((figure, path),) = saved
        assert path == "figure.png"
        assert figure.get_suptitle() == "net: look into the warnings"
        return figure.axes

    return draw


def test_panels_of_what_is_known(axes_of):
    (axis,) = axes_of([ROW])
    assert "standard deviation" in axis.get_ylabel()
    first, second, third = axes_of([ROW, ROW._replace(distance=0.1, gamma=(1, 1, 1))])
    labels = [one.get_ylabel().split()[0] for one in (first, second, third)]
    assert labels == ["distance", "moving", "|gamma|"]


def test_distances_are_coloured_by_what_they_mean(axes_of):
    distances = [0.299, 0.3, 0.999, 1.0, None]
    axis, _ = axes_of([ROW._replace(distance=one) for one in distances])
    bars = [(bar.get_height(), to_hex(bar.get_facecolor())) for bar in axis.patches]
    assert bars[:4] == list(zip(distances, (LINE, WARN, WARN, BAD), strict=False))
    assert np.isnan(bars[4][0])
    assert [line.get_ydata()[0] for line in axis.lines] == [0.3, 1.0]
    assert axis.get_ylim() == (0, pytest.approx(1.12))


def test_small_distances_are_seen_beside_the_first_level(axes_of):
    axis, _ = axes_of([ROW._replace(distance=0.01)])
    assert [line.get_ydata()[0] for line in axis.lines] == [0.3]
    assert axis.get_ylim() == (0, pytest.approx(1.15 * 0.3))


def test_spreads_are_of_the_middle_and_the_ends(axes_of):
    nothing = (np.nan,) * 3
    rows = [ROW, ROW._replace(stddev=nothing), ROW._replace(stddev=(0.0, 4.0, 8.0))]
    (axis,) = axes_of(rows)
    (middle,) = axis.lines
    assert [list(one) for one in middle.get_data()] == [[0, 2], [1.0, 4.0]]
    (bars,) = axis.collections
    ends = [[tuple(point) for point in one.vertices] for one in bars.get_paths()]
    assert ends == [[(0, 0.5), (0, 2.0)], [(2, 1e-6), (2, 8.0)]]  # zero at its foot
    assert axis.get_yscale() == "log"
    low, high = axis.get_ylim()
    assert (low, high) == (pytest.approx(0.8e-6), 10.0)
    # A decade at least, around a spread of a few percent.
    low, high = axes_of([ROW._replace(stddev=(1.0, 1.0, 1.1))])[0].get_ylim()
    assert high / low == pytest.approx(10)
    assert axes_of([ROW._replace(stddev=nothing)])[0].get_yscale() == "linear"


@pytest.mark.parametrize("layers", [24, 25])
def test_so_many_layers_have_names(axes_of, layers):
    (axis,) = axes_of([ROW] * layers)
    names = [one.get_text() for one in axis.get_xticklabels()]
    assert (names == ["norm"] * layers) == (layers == 24)
    assert bool(axis.get_xlabel()) == (layers == 25)
    assert axis.get_xlim() == (-0.6, pytest.approx(layers - 0.4))
