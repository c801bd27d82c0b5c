"""The figure of an inspection: what it shows, not how large its letters are."""

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from keras_bn.tools._reports.findings import Finding
from keras_bn.tools._reports.inspection import Inspection, LayerReport
from keras_bn.tools._reports.plot import BAD, BAND, LINE, WARN

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
    assert list(first.figure.get_size_inches()) == [6.4, pytest.approx(1 + 3 * 1.9)]
    assert first.figure.get_layout_engine() is not None  # no label on another panel
    assert first.get_shared_x_axes().joined(first, third)


def test_a_grid_across_behind_what_is_drawn(axes_of):
    (axis,) = axes_of([ROW])
    lines = [one.get_gridlines()[0].get_visible() for one in (axis.xaxis, axis.yaxis)]
    assert lines == [False, True]
    assert axis.get_axisbelow() is True
    seen = {side: spine.get_visible() for side, spine in axis.spines.items()}
    assert seen == {"left": True, "bottom": True, "top": False, "right": False}


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install keras-bn\[plot\]"):
        Inspection("net", [ROW], [], None).plot("figure.png")


def test_distances_are_coloured_by_what_they_mean(axes_of):
    distances = [0.299, 0.3, 0.999, 1.0, None]
    axis, _ = axes_of([ROW._replace(distance=one) for one in distances])
    bars = [(bar.get_height(), to_hex(bar.get_facecolor())) for bar in axis.patches]
    assert bars[:4] == list(zip(distances, (LINE, WARN, WARN, BAD), strict=False))
    assert np.isnan(bars[4][0])
    assert [bar.get_width() for bar in axis.patches] == [pytest.approx(0.4)] * 5
    levels = [(one.get_ydata()[0], to_hex(one.get_color())) for one in axis.lines]
    assert levels == [(0.3, WARN), (1.0, BAD)]
    assert [(one.get_text(), *one.get_position()) for one in axis.texts] == [
        (" warning", 1.0, 0.3),
        (" error", 1.0, 1.0),
    ]
    assert [to_hex(one.get_color()) for one in axis.texts] == [WARN, BAD]
    # Beside the panel, at the height of the values.
    place = axis.texts[0].get_transform()
    assert place.contains_branch_seperately(axis.transData) == (False, True)
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
    assert (to_hex(bars.get_color()[0]), to_hex(middle.get_color())) == (BAND, LINE)
    shown = [one.get_text() for one in axis.get_legend().get_texts()]
    assert shown == ["smallest to largest", "median"]
    assert axis.get_yscale() == "log"
    low, high = axis.get_ylim()
    assert (low, high) == (pytest.approx(0.8e-6), 10.0)
    # A decade at least, around a spread of a few percent.
    low, high = axes_of([ROW._replace(stddev=(2.0, 2.0, 2.2))])[0].get_ylim()
    assert high / low == pytest.approx(10)
    assert axes_of([ROW._replace(stddev=nothing)])[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("stddev", "expected"),
    [
        ((0.5, 1.0, 2.0), [0.5, 1, 2]),
        ((0.1, 1.0, 10.0), [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        ((0.0498, 1.0, 5.0), [0.1, 1]),  # 100.4 times
    ],
)
def test_decades_have_as_many_ticks_as_there_is_room_for(axes_of, stddev, expected):
    (axis,) = axes_of([ROW._replace(stddev=stddev)])
    low, high = axis.get_ylim()
    ticks = [tick for tick in axis.get_yticks() if low <= tick <= high]
    assert ticks == pytest.approx(expected)
    assert axis.yaxis.get_major_formatter()(0.5) == "0.5"
    assert axis.yaxis.get_minor_formatter()(0.5) == ""


@pytest.mark.parametrize(("layers", "width"), [(24, 10.08), (25, 10.4), (40, 14)])
def test_so_many_layers_have_names(axes_of, layers, width):
    first, axis = axes_of([ROW._replace(distance=0.1)] * layers)
    assert first.patches[0].get_width() == 0.7
    assert axis.figure.get_size_inches()[0] == pytest.approx(width)
    assert not first.get_xlabel()
    names = [one.get_text() for one in axis.get_xticklabels()]
    assert (names == ["norm"] * layers) == (layers == 24)
    assert bool(axis.get_xlabel()) == (layers > 24)
    assert axis.get_xlim() == (-0.6, pytest.approx(layers - 0.4))
