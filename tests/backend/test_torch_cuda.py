"""The Triton kernels against the oracle; in Triton's interpreter if there is no GPU."""

import numpy as np
import pytest

from cases_cuda import (
    ACTIVATIONS,
    CASES,
    LIMITS,
    SERVED,
    TILINGS,
    Case,
    Inputs,
    assert_close,
    float64,
)
from keras_bn import backend, ops
from keras_bn.backend import formulas
from keras_bn.backend.interface import Axes, Moments

pytestmark = [
    pytest.mark.skipif(not SERVED, reason="kernels for PyTorch, in Triton, on Linux"),
    # NumPy's, of which the interpreter is made; a GPU says nothing of it.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) enc:RuntimeWarning"),
]
if SERVED:
    import torch
    import triton
    import triton.language as tl

    from cases_cuda import DEVICE
    from keras_bn.backend import torch_cuda, torch_cuda_operators
    from keras_bn.backend.torch_triton_tiles import Tile, place, program

    @triton.jit
    def offsets_of(found, number, rows, channels, units, tile: tl.constexpr):
        """The offsets of the values of a tile, by its number in the first column."""
        first, column = program(channels, tile)
        offsets, _ = place(first + number, column, rows, channels, units, tile)
        at = tl.arange(0, tile.height)[:, None] * tile.width
        tl.store(found + at + tl.arange(0, tile.width)[None, :], offsets)


@pytest.fixture(autouse=True)
def _fresh():
    """No plan of one test is another's."""
    yield
    torch_cuda_operators._Launch._of.cache_clear()


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    """No kernel reads or writes beside its tensors, or takes what it does not read."""
    if DEVICE != "cpu":
        return  # Triton's interpreter alone shows the addresses.
    from triton.runtime.interpreter import InterpreterBuilder

    run, spans = torch_cuda_operators._run, []

    def noted(kernel, programs, *arguments, **constants):
        spans[:] = [
            (one.data_ptr(), one.data_ptr() + one.numel() * one.element_size())
            for one in arguments
            if isinstance(one, torch.Tensor)
        ]
        run(kernel, programs, *arguments, **constants)

    def inside(addresses, mask):
        used = addresses.data[mask.data]
        assert np.any([(used >= a) & (used < b) for a, b in spans], 0).all()

    load, store = (
        getattr(InterpreterBuilder, f"create_masked_{name}")
        for name in ("load", "store")
    )

    def checked_load(self, addresses, mask, other, *rest):
        inside(addresses, mask)
        found = load(self, addresses, mask, other, *rest)
        if other is None:  # On a GPU it is whatever was there: here bits of a NaN.
            values, nan = found.data, b"\xff" * found.data.itemsize
            values[~mask.data] = np.frombuffer(nan, values.dtype)[0]
        return found

    def checked_store(self, addresses, value, mask, *rest):
        inside(addresses, mask)
        return store(self, addresses, value, mask, *rest)

    monkeypatch.setattr(torch_cuda_operators, "_run", noted)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that run, in turn."""
    names = []
    run = torch_cuda_operators._run

    def counted(kernel, *arguments, **constants):
        names.append(kernel.__name__)
        run(kernel, *arguments, **constants)

    monkeypatch.setattr(torch_cuda_operators, "_run", counted)
    return names


@pytest.mark.parametrize(("name", "tiling"), TILINGS)
def test_a_training_pass_is_the_oracles(name, tiling, monkeypatch):
    for constant, value in tiling.items():
        monkeypatch.setattr(torch_cuda_operators, constant, value)
    inputs = Inputs(CASES[name])
    y, centred, (dx, dscale, doffset) = inputs.run()
    expected, slopes = inputs.expected()
    limit = LIMITS[inputs.case.dtype]
    assert_close(y, expected.y, limit)
    assert_close(dx, slopes.x, limit)
    for one, other in ((dscale, slopes.gamma), (doffset, slopes.beta)):
        assert_close(one, other, LIMITS["float32"])
    mean = float64(centred.centre) + float64(centred.residual)
    np.testing.assert_allclose(mean, expected.mean.ravel(), rtol=1e-9, atol=1e-6)
    assert_close(centred.variance, expected.variance, LIMITS["float32"])
    assert centred.count.shape == ()
    assert centred.count == np.max(expected.count)
    for one in (y, dx):
        assert one.dtype == inputs.x.dtype
        assert one.stride() == inputs.x.stride()
        assert one.numel() == 0 or one.data_ptr() != inputs.x.data_ptr()


@pytest.mark.parametrize(
    ("rows", "channels", "length"),
    # Rows of as many values of each channel; 1 where the channels lie side by side.
    [
        *((32 * 56 * 56, 64, 1), (49, 2048, 1), (513, 4096, 1), (8192, 3, 1)),
        *((32, 64, 56 * 56), (32, 2048, 49), (100, 2, 49), (1, 32, 512 * 512)),
        *((6, 1, 300), (3, 2, 5), (2, 3, 24), (99, 2, 1), (128, 2**16, 1)),
        *((2**15 - 1, 2**16, 1), (2**15, 2**16, 1), (2**16, 2**15, 1)),
        *((2**10, 2**11, 2**9), (2**10, 2**11, 2**10)),
    ],
)
def test_how_a_tensor_is_cut_up(rows, channels, length):
    """What the results do not show: what it takes on a GPU, and offsets of 64 bits."""
    x = torch.empty(rows, channels, length, device="meta")
    found = torch_cuda_operators._Launch.of(x, 1)
    tile, values = found.tile, rows * channels * length
    if channels == 1:
        rows, length = 1, values
    assert tile.wide == (values >= 2**31)
    assert tile.last == (length == 1)
    # A row is made of units of as many values as are loaded at once, up to 16.
    row = channels if tile.last else length
    assert found.sizes == (rows, channels, row / tile.unit)
    assert tile.unit == 16 or (tile.unit in (1, 2, 4, 8) and row % (2 * tile.unit))
    # Tiles are of powers of two, and fill a thread's registers if there is so much.
    assert tile.height.bit_count() == tile.width.bit_count() == 1
    assert tile.height * tile.width <= 4096
    assert tile.width >= min(64 if tile.last else 256, row)
    padded = tile.height * tile.width * found.columns * found.tiles
    assert padded < 4 * values or (tile.last and found.tiles == 1)
    assert found.columns == (-(-channels // tile.width) if tile.last else channels)
    across = 1 if tile.last else -(-length // tile.width)
    assert found.tiles == across * -(-rows // tile.height)
    # Parts of up to 64 tiles, as many as a device is busy with, none of them empty.
    assert 0 <= found.parts * found.share - found.tiles < found.share <= 64
    programs = found.columns * found.parts
    assert programs >= min(found.columns * found.tiles, 128)
    assert programs <= 512 or found.share == 64 or found.parts == 1


@pytest.mark.parametrize("last", [True, False])
def test_offsets_beyond_32_bits(last):
    """Of the last tile in the first column of a tensor of 2**33 values."""
    channels, row = (256, 256) if last else (2**10, 2**10 * 256)
    rows = 2**33 // row
    tile = Tile(height=4, width=16, last=last, unit=16, wide=True)
    number = rows // 4 * (1 if last else 256 // 16) - 1
    found = torch.zeros(4, 16, dtype=torch.int64, device=DEVICE)
    torch_cuda_operators._run(
        *(offsets_of, 1, found, number, rows, channels, 256 // 16), tile
    )
    above, beside = row * np.arange(rows - 4, rows), np.arange(16)
    expected = above[:, None] + beside + (0 if last else 256 - 16)
    np.testing.assert_array_equal(found.cpu(), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    inputs = Inputs(CASES["image last"]._replace(activation=activation, mean=3.0))
    inputs.scale *= 4.0  # reaches beyond 6, and far below 0
    # Where relu and its kin have a corner are all values of a gamma that begins as 0.
    inputs.scale[:2], inputs.offset[:2] = 0.0, torch.tensor([0.0, 6.0])
    y, _, found = inputs.run()
    expected, slopes = inputs.expected()
    assert_close(y, expected.y, LIMITS["float32"])
    for one, right in zip(found, slopes, strict=True):
        assert_close(one, right, LIMITS["float32"])


@pytest.mark.parametrize(
    ("shape", "tile"),
    # Of the last, the last part is one narrow tile alone.
    [((9, 2, 20), 256), ((9, 2, 257), 256), ((17, 2, 257), 1024)],
)
def test_a_centre_far_from_the_rest(shape, tile, monkeypatch):
    """The first values of each part are as far from its mean as values can be."""
    monkeypatch.setattr(torch_cuda_operators, "_TILE", tile)
    monkeypatch.setattr(torch_cuda_operators, "_PROGRAMS", 8)
    inputs = Inputs(Case(shape, 1, 1.0))
    inputs.x[:, :, 0] = 1e4
    inputs.x[:, :, -1] = -1e4
    centred, _ = inputs.parts.moments(inputs.x)
    expected, _ = inputs.expected()
    np.testing.assert_allclose(
        float64(centred.variance), expected.variance.ravel(), rtol=3e-6
    )


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(
    ("name", "activation"),
    [*(("image last", one) for one in ACTIVATIONS), ("image first", "relu")],
)
def test_what_is_not_finite_shows_and_stays_in_its_channel(name, activation, value):
    inputs = Inputs(CASES[name]._replace(activation=activation))
    case = inputs.case
    inputs.x.movedim(case.axis, 0)[2][3, 5, 6] = value
    y, centred, (dx, *_) = inputs.run()
    good = np.arange(case.shape[case.axis]) != 2
    for tensor in (y, dx):
        finite = torch.isfinite(tensor).movedim(case.axis, 0).flatten(1).all(1)
        np.testing.assert_array_equal(finite.cpu(), good)
    found = torch_cuda.usable(centred.bookkeeping())
    np.testing.assert_array_equal(found.cpu(), good)


class Together:
    """Replicas of which this is one; the others' values are given."""

    def __init__(self, rows, sums=None):
        self.rows, self.sums, self.received = rows, sums, []

    def gather(self, values):
        self.received.append(values)
        return torch.stack(self.rows)

    def total(self, values):
        self.received.append(values)
        return self.sums


@pytest.mark.parametrize(
    ("counts", "mean"), [((3, 1, 4), 1e5), ((5, 0, 3), 0.0), ((8,), 1e4)]
)
def test_replicas_have_what_one_device_would(counts, mean):
    """Also where a replica has no data."""
    case = Case((8, 5, 6, 12), 3, mean, "float32", "relu")
    whole = Inputs(case)
    replicas = []
    for x, dy in zip(whole.x.split(counts), whole.dy.split(counts), strict=True):
        one = Inputs(case)
        one.x, one.dy = x, dy
        replicas.append(one)
    rows = [
        torch.cat([part.reshape(-1) for part in one.parts.moments(one.x)[0]])
        for one in replicas
    ]
    sums = torch.zeros(2, 12, device=DEVICE)
    sums = sum(
        (torch.stack(one.run(Together(rows, sums))[2][1:]) for one in replicas), sums
    )
    expected, slopes = whole.expected()
    found = [one.run(Together(rows, sums)) for one in replicas]
    limit = LIMITS["float32"]
    assert_close(torch.cat([y for y, *_ in found]), expected.y, limit)
    assert_close(torch.cat([dx for *_, (dx, *_) in found]), slopes.x, limit)
    assert_close(sums, np.stack([slopes.gamma, slopes.beta]), limit)


def test_replicas_may_run_on_formulas():
    """One that cannot run Triton is sent, and sends, the same numbers."""
    inputs = Inputs(CASES["image last"])
    axes = Axes((3,), (0, 1, 2))
    own = formulas.centred_moments(formulas.widen(inputs.x), axes, None)
    sent = [Together([torch.ones(73, device=DEVICE)] * 2) for _ in range(2)]
    theirs = formulas.over_replicas(own, sent[0])
    ours = inputs.parts.merged(own, sent[1])
    torch.testing.assert_close(sent[0].received, sent[1].received, rtol=0, atol=0)
    torch.testing.assert_close(tuple(ours), tuple(theirs))


# Up to 32 and up to 512 rows are merged at once; a last one may hold a single value.
@pytest.mark.parametrize("rows", [1, 32, 33, 513, 1100])
def test_many_rows_are_merged(rows):
    rng = np.random.default_rng(rows)
    counts = rng.integers(0 if rows > 1 else 1, 9, rows).astype("float64")
    counts[-1] = 1.0
    centre = rng.normal(1e5, 3, (rows, 11))
    residual, variance = rng.normal(size=(rows, 11)), rng.uniform(0, 4, (rows, 11))
    parts = [
        np.float32(part).astype("float64")
        for part in (counts[:, None], centre, residual, variance)
    ]
    row = torch.tensor(np.concatenate(parts, 1), dtype=torch.float32, device=DEVICE)
    found = float64(torch_cuda_operators.merged(row))
    count, centre, residual, variance = parts
    share = count / count.sum()
    mean = (share * (centre + residual)).sum(0)
    spread = (share * (variance + (centre + residual - mean) ** 2)).sum(0)
    assert found[0] == count.sum()
    np.testing.assert_allclose(found[1:12] + found[12:23], mean, rtol=0, atol=3e-6)
    np.testing.assert_allclose(found[23:], spread, rtol=3e-6)


@pytest.mark.parametrize("rows", [1, 32, 33, 512, 513])
def test_how_rows_are_cut_up(rows, monkeypatch):
    """What the results do not show: what it takes on a GPU."""
    asked = {}
    monkeypatch.setattr(
        torch_cuda_operators, "_run", lambda *_, **constants: asked.update(constants)
    )
    torch_cuda_operators.merged(torch.zeros(rows, 1 + 3 * 11, device=DEVICE))
    # All at once up to 512, few of them by few threads; each has a value, or several.
    assert min(rows, 512) <= asked["BP"]
    assert asked["BP"] <= 32 or rows > 32
    assert 1 <= asked["BP"] * asked["BC"] / (32 * asked["num_warps"]) <= 8


def test_a_step_is_few_launches(launches):
    inputs = Inputs(CASES["image last"])
    _, centred, _ = inputs.run()
    moments = centred.bookkeeping()
    where = torch_cuda.usable(moments)
    for value in moments[1:]:
        torch_cuda.moving_average(torch.zeros_like(value), value, 0.9, where)
    assert launches == [
        *("moments", "merge", "normalize"),
        *("slopes", "merge_slopes", "input_gradient"),
        *("usable", "moving_average", "moving_average"),
    ]


def test_no_pass_for_a_gradient_that_nobody_wants(launches):
    inputs = Inputs(CASES["image last"])
    _, centred, expected = inputs.run()
    del launches[:]
    found = inputs.parts.gradients(
        *(inputs.x, inputs.scale, inputs.offset, inputs.dy, centred, None, False)
    )
    assert found[0] is None
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=0)
    assert launches == ["slopes", "merge_slopes"]


@pytest.mark.parametrize("kind", ["every second", "expanded", "transposed"])
def test_gradients_and_inputs_that_lie_otherwise(kind):
    inputs = Inputs(CASES["image first"])
    if kind == "every second":
        inputs.x = torch.stack([inputs.x, inputs.dy], -1)[..., 0]
    elif kind == "expanded":
        inputs.dy = torch.ones((), device=DEVICE).expand(inputs.x.shape)
    else:
        inputs.dy = inputs.dy.transpose(2, 3).contiguous().transpose(2, 3)
    y, _, (dx, *_) = inputs.run()
    expected, slopes = inputs.expected()
    assert_close(y, expected.y, LIMITS["float32"])
    # The gradient of a sum is 0 but for roundings.
    assert_close(dx, slopes.x, LIMITS["float32"] if kind != "expanded" else 1e-4)


@pytest.mark.parametrize("count", [3.0, 0.0, [1.0, 0.0, 2.0, 2.0, 2.0] * 300])
def test_usable_is_the_references(count):
    big = float("inf")
    moments = Moments(
        *(
            torch.tensor(one, device=DEVICE)
            for one in (
                count,
                [1.0, 2.0, float("nan"), 0.0, -big] * 300,
                [1.0, 2.0, 0.0, big, 0.0] * 300,
            )
        )
    )
    expected = backend.reference.usable(moments)
    assert torch_cuda.usable(moments).tolist() == expected.tolist()


@pytest.mark.parametrize("where", [True, False, [True], [True, False, True] * 500])
def test_moving_average_is_the_public_one(where):
    rng = np.random.default_rng(0)
    old, new = (
        torch.tensor(rng.normal(size=1500), dtype=torch.float32, device=DEVICE)
        for _ in range(2)
    )
    new[1::3] = float("nan")
    guard = where if where is True else torch.tensor(where, device=DEVICE)
    found = torch_cuda.moving_average(old, new, 0.99, guard)
    expected = ops.moving_average(old, new, 0.99, guard)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=1e-7)
    assert bool(found.isfinite().all()) is (where not in (True, [True]))
