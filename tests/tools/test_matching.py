"""Which layer is which: by names, sizes or order, or an error."""

import re

import pytest

from cases_names import items
from keras_bn.tools._foreign.matching import match
from keras_bn.tools._foreign.pairs import Item

pytestmark = pytest.mark.once


def test_a_compiled_part_is_the_part():
    theirs = items(["stem._orig_mod.bn", "head.bn"])
    matching = match(items(["head_bn", "stem/bn"]), theirs, None, True, {})
    assert matching.mapping == {"head_bn": "head.bn", "stem/bn": "stem._orig_mod.bn"}


LINE = {"a": [], "b": ["a"], "c": ["a", "b"]}
LINE_OF_4 = LINE | {"d": ["a", "b", "c"]}
FORK = {"a": [], "b": ["a"], "c": ["a"]}
ASIDE = {"a": [], "b": ["a"], "c": []}

# Layers, prefixes, what is surely called before what, and the prefixes that they get.
ORDERS = {
    "numbers": ("a b c", "f.0 f.2 f.10", LINE, "f.0 f.2 f.10"),
    "alphabet": ("a b c", "f.0 f.10 f.2", LINE, "f.0 f.2 f.10"),
    "model in another order": ("c a b", "f.0 f.2 f.10", LINE, "f.10 f.0 f.2"),
    "two numbers": ("a b c", "f.0.bn2 f.1.bn1 f.0.bn1", LINE, None),
    "two numbers, sorted": (
        "a b c",
        "f.0.bn1 f.0.bn2 f.1.bn1",
        LINE,
        "f.0.bn1 f.0.bn2 f.1.bn1",
    ),
    "sizes apart": ("a:1 b:2 c:3", "z:3 y:1 x:2", {}, "y:1 x:2 z:3"),
    "parts of one name": (
        *("p/bn q/bn", "f.0.bn f.1.bn", {"p/bn": [], "q/bn": ["p/bn"]}),
        "f.0.bn f.1.bn",
    ),
    "one size apart": ("a b c:3", "f.1 q:3 f.2", LINE, "f.1 f.2 q:3"),
    "branches": ("a b c", "f.0 f.1 f.2", FORK, None),
    "nothing known": ("a b c", "f.0 f.1 f.2", {}, None),
    "other names": ("a b c", "f.0 f.1 g.2", LINE, None),
    "in no order": ("a b c", "f.2 f.1 f.10", LINE, None),
    "counts": ("a b c", "f.0 f.1", LINE, None),
    "sizes": ("a b c", "f.0 f.1 f.2:3", LINE, None),
    "a name says other": ("a:1 b:2", "b:1 a:2", {}, None),
    "a size says other": ("a:3 b c", "f.0 f.1 f.2:3", LINE, None),
    "sizes say other": ("a:1 b:2 c d", "g.1:1 g.0:2 f.0 f.1", LINE_OF_4, None),
    "a size of another part": ("a:3 b c", "f.0.x f.1.x f.2.y:3", LINE, None),
    "a size of other names": ("a:3 b c", "f.0 f.1 g.2:3", LINE, "g.2:3 f.0 f.1"),
    "sizes alone, backwards": ("a:1 b:2 c:3", "f.2:1 f.1:2 f.0:3", LINE, "f.2 f.1 f.0"),
    "a size of a branch": ("a b c:3", "f.1 f.2 f.0:3", ASIDE, "f.1 f.2 f.0:3"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_order_decides_only_where_it_is_forced(case):
    layers, prefixes, before, expected = ORDERS[case]
    ours, theirs = items(layers.split()), items(prefixes.split())
    past = {name: frozenset(names) for name, names in before.items()}
    if expected is None:
        with pytest.raises(ValueError, match="`mapping` must be given"):
            match(ours, theirs, None, True, past)
        return
    matching = match(ours, theirs, None, True, past)
    assert list(matching.mapping.values()) == re.sub(r":\d", "", expected).split()


# Sizes of two kernels, which list they are in there, and whether that is from its end.
KERNELS = {
    "in order": ("4x3 4x4", "convs.0 convs.1", True),
    "from the end": ("4x3 4x4", "convs.1 convs.0", False),
    "of two lists": ("4x3 4x4", "first.1 second.0", True),
    "of one size": ("4x4 4x4", "convs.0 convs.1", True),
    "one is missing": ("4x3 4x4", "convs.1", True),
}


@pytest.mark.parametrize("asked", ["norms", "all", "mapping"])
@pytest.mark.parametrize("case", KERNELS)
def test_kernels_speak_against_an_order_of_norms(case, asked):
    sizes, names, follows = KERNELS[case]
    shapes = [tuple(map(int, size.split("x"))) for size in sizes.split()]
    kernels, there = (
        [Item(name, "linear", shape) for name, shape in zip(side, shapes, strict=False)]
        for side in (["conv_a", "conv_b"], names.split())
    )
    if len(there) < len(kernels) and asked != "norms":
        kernels = kernels[:1]
    calls = ["conv_a", "a", "conv_b", "b"]
    before = {name: frozenset(calls[:i]) for i, name in enumerate(calls)}
    ours, theirs = items(["a", "b"]), items(["norms.0", "norms.1"])
    given = {o.name: t.name for o, t in zip(kernels, there, strict=False)}
    mapping = given if asked == "mapping" else {}
    others = (kernels, there) if asked == "norms" else ((), ())
    if asked != "norms":
        ours, theirs = [*kernels, *ours], [*theirs, *there]
    if not follows:
        message = r"the numbers do not follow(?s:.*)a \(norm .*\['norms.0', 'norms.1'\]"
        with pytest.raises(ValueError, match=message):
            match(ours, theirs, mapping, True, before, others)
        mapping |= {"a": "norms.1"}
    matching = match(ours, theirs, mapping, True, before, others)
    norms = ["norms.0", "norms.1"] if follows else ["norms.1", "norms.0"]
    assert [matching.mapping[name] for name in "ab"] == norms
    by = {pair.layer: pair.by for pair in matching.pairs}
    assert [by["a"], by["b"]] == (["order"] * 2 if follows else ["mapping", "size"])
    if asked == "all":
        assert matching.mapping == given | dict(zip("ab", norms, strict=True))
        alone = "order" if shapes[0] == shapes[-1] else "size"
        assert {by[one.name] for one in kernels} == {alone}


def test_the_error_shows_the_candidates():
    ours = items(["one:4", "two:4", "three:8"])
    theirs = items(["x:4", "y:4", "z.0:8"])
    with pytest.raises(ValueError, match=r"3 layers, .* 3 prefixes") as caught:
        match(ours, theirs, None, True, {})
    text = str(caught.value)
    assert "\nCandidates of equal size:\n  one (norm of size 4): ['x', 'y']" in text
    assert "nothing says the order of ['one', 'two'] or of ['x', 'y']" in text
    # But the rest can be told, once a part of it is said.
    given = {"two": "x"}
    matching = match(ours, theirs, given, True, {})
    assert given == {"two": "x"}  # the user's own
    assert matching.mapping == {"one": "y", "two": "x", "three": "z.0"}
    assert [pair.by for pair in matching.pairs] == ["size", "mapping", "size"]


@pytest.mark.parametrize(
    ("mine", "other", "enough"),
    [(8, 8, True), (9, 9, False), (12, 2, True), (2, 12, True)],
)
def test_less_than_a_quarter_is_no_match(mine, other, enough):
    """Of the side that has less."""
    ours = items(["stem", "neck", *(f"own{i}" for i in range(mine - 2))])
    theirs = items(["x.stem", "x.neck", *(f"y.other{i}" for i in range(other - 2))])
    if not enough:
        with pytest.raises(ValueError, match="`mapping` must be given"):
            match(ours, theirs, None, False, {})
        return
    matching = match(ours, theirs, None, False, {})
    assert matching.mapping == {"stem": "x.stem", "neck": "x.neck"}


def test_the_doubt_of_what_fits_most_comes_first():
    ours = items(["a:5", "b:5", "c:5"])
    theirs = items(["y.a", "y.b", "x.a", "x.b", "x.c"])
    with pytest.raises(ValueError, match=r"'x.a' a norm of size 8\n.*'y.a' a norm of"):
        match(ours, theirs, None, False, {})


def test_a_name_that_all_others_begin_with_is_no_equal_name():
    with pytest.raises(ValueError, match="`mapping` must be given"):
        match(items(["a", "a/b"]), items(["x", "x.c"]), None, False, {})


@pytest.mark.parametrize(("equal", "told"), [("a b", False), ("a b c", True)])
def test_more_than_half_of_the_names_are_a_doubt(equal, told):
    ours = items(["a", "b", "c", "d"])
    theirs = items([*equal.split(), "x", "y"][:4])
    with pytest.raises(ValueError, match="`mapping` must be given") as caught:
        match(ours, theirs, None, True, {})
    assert ("by name: only some names match" in str(caught.value)) == told


def test_kernels_alone_are_no_match_where_norms_are_left():
    kernel = Item("conv", "linear", (3, 4))
    ours, theirs = [*items(["a_bn"]), kernel], [*items(["other"]), kernel]
    with pytest.raises(ValueError, match="`mapping` must be given"):
        match(ours, theirs, None, False, {})
    matching = match(ours, theirs, {"a_bn": "other"}, False, {})
    assert matching.mapping == {"a_bn": "other", "conv": "conv"}


def test_of_a_kind_that_is_mapped_more_may_be_left():
    kernels = [Item(name, "linear", (3, 4)) for name in ("conv", "x", "y")]
    ours, theirs = [*items(["a_bn"]), kernels[0]], [*items(["a.bn"]), *kernels[1:]]
    matching = match(ours, theirs, {"conv": "x"}, True, {})
    assert matching.mapping == {"a_bn": "a.bn", "conv": "x"}
    assert matching.unused == ["y"]


def test_two_models_in_one_state_are_ambiguous():
    theirs = items(["student.stem.bn", "teacher.stem.bn"])
    with pytest.raises(
        ValueError, match=r"2 ways.*\n  stem_bn: student.stem.bn, teach"
    ):
        match(items(["stem_bn"]), theirs, None, False, {})


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("twice", ["a/bn a_bn", "a.bn a._orig_mod.bn"])
def test_names_that_look_the_same_on_one_side_are_no_names(strict, turned, twice):
    sides = items(twice.split()), items(["a_bn"])
    with pytest.raises(ValueError, match="`mapping` must be given"):
        match(*(sides[::-1] if turned else sides), None, strict, {})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"x": "f.1"}, r"paths of layers .*\['a', 'b'\].*'x'"),
        ({"a": "x"}, r"prefixes of .*\['f.1', 'f.2', 'conv'\].*'x' for layer 'a'"),
        ({"a": "f.1", "b": "f.1"}, "to one layer only.*'f.1' for 'a' and 'b'"),
        ({"a": "conv"}, "of one kind.*'a', a norm of size 8, and 'conv', a linear of"),
    ],
)
def test_bad_mapping(mapping, message):
    theirs = [*items(["f.1", "f.2"]), Item("conv", "linear", (8, 4))]
    with pytest.raises(ValueError, match=message):
        match(items(["a", "b"]), theirs, mapping, True, {})


def test_a_size_that_is_not_there_is_said():
    """Where no mapping could help; and kernels that nobody has asked for."""
    ours, theirs = items(["a", "b:6", "c:7"]), items(["x", "y:5", "z"])
    message = r"sizes .*'norm of size 8', 'norm of size 5'\].*'b', a .* 6, nor 1 others"
    with pytest.raises(ValueError, match=message):
        match(ours, theirs, None, True, {})
    with pytest.raises(ValueError, match=r"helps 'b', a norm of size 6 \(`strict=Fa"):
        match(ours[:2], theirs, None, True, {})
    kernels = [Item("conv", "linear", (8, 4))]
    with pytest.raises(
        ValueError, match=r"`layers` must be 'all'.*'conv' in `mapping`"
    ):
        match(ours, theirs, {"conv": "f"}, True, {}, (kernels, []))


def test_numbers_that_nobody_gave_are_no_names():
    ours = items(["conv2d_1:3", "batch_normalization_1", "stem"])
    theirs = items(["Conv_1:3", "batch_normalization_1", "stem"])
    assert match(ours, theirs, None, False, {}).mapping == {"stem": "stem"}


def test_names_that_say_other_than_the_order_are_a_doubt():
    """Even those that Keras has made up: the second model of a session has others."""
    first, second, third = (f"batch_normalization{end}" for end in ("", "_1", "_2"))
    before = {second: frozenset({first})}
    with pytest.raises(ValueError, match="by order: some names say other"):
        match(items([first, second]), items([second, third]), None, True, before)
    matching = match(items([first, second]), items(["f.2", "f.10"]), None, True, before)
    assert matching.mapping == {first: "f.2", second: "f.10"}
