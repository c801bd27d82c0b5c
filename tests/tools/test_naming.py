"""Which layer is which, by the names that libraries give them."""

import random

import pytest

from cases_names import PAIRS, items, pairs_of
from keras_bn.tools._foreign.matching import match
from keras_bn.tools._foreign.pairs import Item

pytestmark = pytest.mark.once


@pytest.mark.parametrize("listed", ["as defined", "by the alphabet", "shuffled"])
@pytest.mark.parametrize("title", PAIRS)
def test_names_of_libraries(title, listed):
    rows = pairs_of(PAIRS[title])
    theirs = [Item(prefix, kind, size) for prefix, _, kind, size in rows]
    ours = [Item(layer, kind, size) for _, layer, kind, size in rows]
    if listed == "by the alphabet":
        theirs.sort()
    elif listed == "shuffled":
        random.Random(0).shuffle(theirs)
        random.Random(1).shuffle(ours)
    matching = match(ours, theirs, None, True, {})
    expected = {layer: prefix for prefix, layer, *_ in rows if layer}
    assert matching.mapping == expected
    assert {pair.by for pair in matching.pairs} != {"order"}


@pytest.mark.parametrize(
    "before",
    [
        "",
        "module.",
        "model.",
        "net.module.",
        "_orig_mod.",
        "a.b.c.",
        "model._orig_mod.",
    ],
)
def test_prefixes_are_taken_off(before):
    rows = pairs_of(PAIRS["torchvision ResNet, keras.applications"])
    theirs = [Item(before + prefix, kind, size) for prefix, _, kind, size in rows]
    ours = [Item(f"model/resnet50/{layer}", *rest) for _, layer, *rest in rows]
    expected = {
        f"model/resnet50/{layer}": before + prefix for prefix, layer, *_ in rows
    }
    assert match(ours, theirs, None, True, {}).mapping == expected


@pytest.mark.parametrize("strict", [True, False])
def test_a_deeper_network_is_refused(strict):
    rows = pairs_of(PAIRS["torchvision ResNet, keras.applications"])
    ours = [Item(layer, *rest) for _, layer, *rest in rows]
    theirs = [Item(prefix, *rest) for prefix, _, *rest in rows]
    more = items(["layer1.2.bn1:64", "layer1.2.bn2:64", "layer1.2.bn3:256"])
    with pytest.raises(ValueError, match="`mapping` must be given"):
        match(ours, [*theirs, *more], None, strict, {})


def test_a_head_for_training_only_is_left_out():
    rows = pairs_of(PAIRS["torchvision Inception, keras.applications"])
    ours = [Item(layer, *rest) for _, layer, *rest in rows]
    theirs = [Item(prefix, *rest) for prefix, _, *rest in rows]
    head = items(["AuxLogits.conv0.bn:128", "AuxLogits.conv1.bn:768"])
    matching = match(ours, [*theirs, *head], None, True, {})
    assert matching.mapping == {layer: prefix for prefix, layer, *_ in rows}
    assert matching.unused == [one.name for one in head]


def test_blocks_of_other_sizes_are_no_match():
    theirs = items([f"features.{n}.1" for n in ("1.conv.0", "2.conv.0", "2.conv.1")])
    theirs += items(["features.1.conv.2", "features.2.conv.3"])
    ends = {1: ("expand", "depthwise", "project"), 2: ("depthwise", "project")}
    ours = items([f"block_{i}_{end}_BN" for i in ends for end in ends[i]])
    with pytest.raises(ValueError, match="`mapping` must be given"):
        match(ours, theirs, None, True, {})
    turned = {1: ends[2], 2: ends[1]}
    ours = items([f"block_{i}_{end}_BN" for i in turned for end in turned[i]])
    numbers = ("1.conv.0.1", "1.conv.2", "2.conv.0.1", "2.conv.1.1", "2.conv.3")
    expected = [f"features.{number}" for number in numbers]
    assert [*match(ours, theirs, None, True, {}).mapping.values()] == expected


def test_ten_layers_of_a_block_are_in_their_order():
    ours = items([f"conv2_block1_{i}_bn" for i in range(1, 12)])
    theirs = items([f"ResNetBlock_0/BatchNorm_{i}" for i in range(11)])
    names = [one.name for one in theirs]
    assert [*match(ours, theirs, None, True, {}).mapping.values()] == names


def test_a_head_for_other_classes_is_left_out():
    rows = pairs_of(PAIRS["torchvision ResNet, keras.applications"])
    ours = [Item(layer, *rest) for _, layer, *rest in rows]
    theirs = [Item(prefix, *rest) for prefix, _, *rest in rows]
    theirs[-1] = Item("fc", "linear", (10, 2048))
    matching = match(ours, theirs, None, False, {})
    assert (matching.unmatched, matching.unused) == (["predictions"], ["fc"])
    with pytest.raises(ValueError, match="'fc' a linear of size 10x2048"):
        match(ours, theirs, None, True, {})


def test_not_strict_takes_what_has_a_name():
    ours = items(["net/conv1_bn", "net/conv2_block1_1_bn", "decoder/bn:3", "net/bn:2"])
    theirs = items(["model.bn1", "model.layer1.0.bn1", "neck.norm:5", "model.bn:2"])
    with pytest.raises(ValueError, match="`strict=False` leaves out"):
        match(ours, theirs, None, True, {})
    matching = match(ours, theirs, None, False, {})
    assert matching.mapping == {
        "net/conv1_bn": "model.bn1",
        "net/conv2_block1_1_bn": "model.layer1.0.bn1",
    }
    # One equal name says less than two of a network that is known.
    assert matching.unmatched == ["decoder/bn", "net/bn"]
    assert matching.unused == ["neck.norm", "model.bn"]
    text = str(matching)
    assert text.startswith("2 layers matched, 2 layers get nothing, 2 prefixes are not")
    assert "torchvision -> keras" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["net/conv1_bn", "model.bn1", "8"] in [row[:3] for row in rows]
    assert ["decoder/bn", "-", "keeps", "its", "weights"] in rows
    assert ["-", "neck.norm", "not", "used"] in rows


def test_not_strict_takes_a_head_that_fits():
    ours, theirs = items(["stem", "neck", "fc"]), items(["stem", "neck", "fc"])
    matching = match(ours, theirs, None, False, {})
    assert matching.mapping == {"stem": "stem", "neck": "neck", "fc": "fc"}


@pytest.mark.parametrize("name", ["fc", "Head_FC"])
def test_only_a_head_may_be_of_another_size(name):
    ours, theirs = items(["stem", "neck", name]), items(["stem", "neck", "fc:5"])
    matching = match(ours, theirs, None, False, {})
    assert matching.mapping == {"stem": "stem", "neck": "neck"}
    with pytest.raises(
        ValueError, match="'neck' is a norm of size 8, 'neck' a norm of"
    ):
        match(ours, items(["stem", "neck:5", "fc"]), None, False, {})


@pytest.mark.parametrize("name", ["predictions", "logits"])
def test_the_last_layer_may_be_called_otherwise(name):
    ours, theirs = items(["stem", name, "one"]), items(["stem", "fc", "one"])
    matching = match(ours, theirs, None, True, {})
    assert matching.mapping == {"stem": "stem", name: "fc", "one": "one"}
