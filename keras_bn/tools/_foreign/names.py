"""The names that libraries give to the layers of well-known networks: data, no code.

A family of networks has namings, one for each library that names its layers in a way of
its own. A line of a naming says which names stand where: a part of the network (parts
come in the order of their first lines), the role in a block or `-`, and a pattern for
the whole name. In a pattern `#` is a number of the block, maybe with a letter ("3",
"2a"), and `@` one that orders names within a role; the first line that fits counts. A
layer and its norm may have one line, since weights tell them apart.

Two namings of a family order the same network alike: blocks by their numbers, names in
a block by their roles, in the order of `roles`, and by `@`. Where a role is `-`, only
the order counts. In the part `auxiliary` are heads that serve in training only; where
all names are numbers, in the part `numbered`, blocks are not known.
"""

from typing import NamedTuple

HEADS = {"classifier", "fc", "head", "head_fc", "logits", "predictions"}
"""What a classifier's last layer is called; there is one."""


class Family(NamedTuple):
    """Networks of one kind: the order of roles in a block, and lines by naming."""

    roles: tuple[str, ...]
    namings: dict[str, str]


RESNET = Family(
    ("shortcut", "main"),
    {
        # And timm, segmentation_models_pytorch, mmcv.
        "torchvision": r"""
        stem        -         conv1\.#
        end-of-stem -         conv1|bn1
        block       shortcut  layer#\.#\.downsample\.[012]
        block       main      layer#\.#\.(?:conv|bn)@
        head        -         fc
        """,
        # keras.applications, and keras-hub, which says stack for conv.
        "keras": r"""
        stem        -         conv#_(?:conv|bn)
        block       shortcut  (?:conv|stack)#_block#_0_(?:conv|bn)
        block       main      (?:conv|stack)#_block#_@_(?:conv|bn)
        head        -         predictions
        """,
        "kimm": r"""
        stem        -         conv_stem_(?:conv2d|bn)
        block       shortcut  layer#_#_downsample_(?:conv2d|bn)
        block       main      layer#_#_conv@_(?:conv2d|bn)
        head        -         classifier
        """,
        # The ImageNet example.
        "flax": r"""
        stem        -         conv_init|bn_init
        block       shortcut  \w*ResNetBlock_#/(?:conv|norm)_proj
        block       main      \w*ResNetBlock_#/(?:Conv|BatchNorm)_@
        head        -         Dense_0
        """,
        # hk.nets.ResNet.
        "haiku": r"""
        stem        -         initial_(?:conv|batchnorm)
        block       shortcut  block_group_#/block_#/shortcut_\w+
        block       main      block_group_#/block_#/(?:conv|batchnorm)_@
        head        -         logits
        """,
    },
)

# Where the norm comes first, a block's first norm is not that of its first convolution.
RESNET_V2 = Family(
    ("shortcut", "first", "main"),
    {
        "timm": r"""
        stem        -         stem\.conv
        block       shortcut  stages\.#\.blocks\.#\.downsample\.conv
        block       first     stages\.#\.blocks\.#\.norm1
        block       main      stages\.#\.blocks\.#\.(?:conv|norm)@
        head        -         norm|head\.fc
        """,
        "keras": r"""
        stem        -         conv#_conv
        block       shortcut  (?:conv|stack)#_block#_0_conv
        block       first     (?:conv|stack)#_block#_pre(?:act|_activation)_bn
        block       main      (?:conv|stack)#_block#_@_(?:conv|bn)
        head        -         post_bn|predictions
        """,
    },
)

DENSENET = Family(
    ("first", "second"),
    {
        # And timm, segmentation_models_pytorch.
        "torchvision": r"""
        stem        -         features\.(?:conv|norm)0
        block       first     features\.denseblock#\.denselayer#\.\w+1
        block       second    features\.denseblock#\.denselayer#\.\w+2
        transition  -         features\.transition#\.(?:norm|conv)
        head        -         features\.norm5|classifier
        """,
        "keras.applications": r"""
        stem        -         conv1_(?:conv|bn)
        block       first     conv#_block#_(?:0_bn|1_conv)
        block       second    conv#_block#_(?:1_bn|2_conv)
        transition  -         pool#_(?:bn|conv)
        head        -         bn|predictions
        """,
        "keras-hub": r"""
        stem        -         conv1_(?:conv|bn)
        block       first     stack#_block#_1_(?:bn|conv)
        block       second    stack#_block#_2_(?:bn|conv)
        transition  -         transition#_(?:bn|conv)
        head        -         bn|predictions
        """,
        "kimm": r"""
        stem        -         features_conv0_(?:conv2d|bn)
        block       first     features_denseblock#_denselayer#_(?:norm1|conv1_conv2d)
        block       second    features_denseblock#_denselayer#_(?:conv1_bn|conv2)
        transition  -         features_transition#_(?:norm|conv)
        head        -         features_norm5|classifier
        """,
    },
)

# MobileNets and EfficientNets. The first stage has no expansion: its 1x1 convolution
# projects, as all do in MobileNet and LCNet.
INVERTED_RESIDUALS = Family(
    ("expand", "depthwise", "reduce", "excite", "project"),
    {
        "torchvision": r"""
        stem        -         features\.0\.[01]
        block       -         features\.#\.conv\.@(?:\.[01])?
        block       -         features\.#(?:\.#)?\.block\.@\.(?:[01]|fc@)
        head        -         features\.#\.[01]
        classifier  -         classifier\.#
        """,
        "timm": r"""
        stem        -         conv_stem|bn1
        block       project   blocks\.(0)\.#\.conv_pw
        block       -         blocks\.#\.#\.bn@
        block       expand    blocks\.#\.#\.conv_(?:pw|exp)
        block       depthwise blocks\.#\.#\.conv_dw
        block       reduce    blocks\.#\.#\.se\.conv_reduce
        block       excite    blocks\.#\.#\.se\.conv_expand
        block       project   blocks\.#\.#\.conv(?:_pwl)?
        head        -         conv_head|bn2
        classifier  -         classifier
        """,
        # And efficientnet_pytorch.
        "segmentation_models_pytorch": r"""
        stem        -         _conv_stem|_bn0
        block       expand    _blocks\.#\._(?:expand_conv|bn0)
        block       depthwise _blocks\.#\._(?:depthwise_conv|bn1)
        block       reduce    _blocks\.#\._se_reduce
        block       excite    _blocks\.#\._se_expand
        block       project   _blocks\.#\._(?:project_conv|bn2)
        head        -         _conv_head|_bn1
        classifier  -         _fc
        """,
        "mmcv": r"""
        stem        -         conv1\.(?:conv|bn)
        block       -         layer#\.#\.conv\.@\.(?:conv|bn)
        head        -         conv2\.(?:conv|bn)
        classifier  -         (?:head\.)?fc
        """,
        "keras MobileNet": r"""
        stem        -         Conv1|bn_Conv1|conv|conv_bn
        block       expand    (?:expanded_conv(?:_#)?|block_#)_expand(?i:_bn)?
        block       depthwise (?:expanded_conv(?:_#)?|block_#)_depthwise(?i:_bn)?
        block       reduce    expanded_conv(?:_#)?_squeeze_excite_conv
        block       excite    expanded_conv(?:_#)?_squeeze_excite_conv_1
        block       project   (?:expanded_conv(?:_#)?|block_#)_project(?i:_bn)?
        head        -         Conv_1|Conv_1_bn|conv_1|conv_1_bn
        classifier  -         conv_2
        logits      -         predictions|logits
        """,
        "timm MobileNet": r"""
        stem        -         conv_stem|bn1
        block       -         blocks\.#\.#\.bn@
        block       depthwise blocks\.#\.#\.conv_dw
        block       reduce    blocks\.#\.#\.se\.conv_reduce
        block       excite    blocks\.#\.#\.se\.conv_expand
        block       project   blocks\.#\.#\.conv_pw
        head        -         conv_head|bn2
        classifier  -         classifier
        """,
        "kimm MobileNet": r"""
        stem        -         conv_stem_(?:conv2d|bn)
        block       depthwise blocks_#_#_conv_dw_(?:dwconv2d|bn)
        block       reduce    blocks_#_#_se_conv_reduce
        block       excite    blocks_#_#_se_conv_expand
        block       project   blocks_#_#_conv_pw_(?:conv2d|bn)
        head        -         conv_head(?:_conv2d|_bn)?
        classifier  -         classifier
        """,
        "keras MobileNet V1": r"""
        stem        -         conv1|conv1_bn
        block       depthwise conv_dw_#(?:_bn)?
        block       project   conv_pw_#(?:_bn)?
        classifier  -         conv_preds
        """,
        "keras EfficientNet": r"""
        stem        -         stem_(?:conv|bn)
        block       expand    block#_expand_(?:conv|bn)
        block       depthwise block#_(?:dwconv2?|bn|dwconv_bn)
        block       reduce    block#_se_reduce
        block       excite    block#_se_expand
        block       project   block#_project(?:_conv|_bn)?
        head        -         top_(?:conv|bn)
        classifier  -         predictions
        """,
        "kimm": r"""
        stem        -         conv_stem_(?:conv2d|bn)
        block       project   blocks_(0)_#_conv_pw_(?:conv2d|bn)
        block       expand    blocks_#_#_conv_(?:pw|exp)_(?:conv2d|bn)
        block       depthwise blocks_#_#_conv_dw_(?:dwconv2d|bn)
        block       reduce    blocks_#_#_se_conv_reduce
        block       excite    blocks_#_#_se_conv_expand
        block       project   blocks_#_#(?:_conv_pwl)?_(?:conv2d|bn)
        head        -         conv_head(?:_conv2d|_bn)?
        classifier  -         classifier
        """,
    },
)

# keras.applications leaves these without names: Keras numbers them in the order in
# which they are made, which is that of the branches here.
INCEPTION_V3 = Family(
    (
        *("branch1x1", "branch5x5_1", "branch5x5_2", "branch7x7_1", "branch7x7_2"),
        *("branch7x7_3", "branch3x3", "branch3x3_1", "branch3x3_2", "branch3x3_2a"),
        *("branch3x3_2b", "branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3"),
        *("branch7x7dbl_4", "branch7x7dbl_5", "branch3x3dbl_1", "branch3x3dbl_2"),
        *("branch3x3dbl_3", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch7x7x3_1"),
        *("branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4", "branch_pool"),
    ),
    {
        # And timm.
        "torchvision": r"""
        stem        -         Conv2d_#_\dx\d\.(?:conv|bn)
        mixed       *         Mixed_#\.(?P<role>branch\w+)\.(?:conv|bn)
        auxiliary   -         AuxLogits\..*
        head        -         fc
        """,
        "keras.applications": r"""
        numbered    -         (?:batch_normalization|conv2d)(?:_#)?
        head        -         predictions
        """,
    },
)

XCEPTION = Family(
    (),
    {
        "timm": r"""
        stem        -         bn([12])
        shortcut    -         block#\.skipbn
        block       -         block#\.rep\.@
        end         -         bn#
        """,
        "keras.applications": r"""
        stem        -         block1_conv#_bn
        shortcut    -         batch_normalization(?:_#)?
        block       -         block#(?<!block14)_sepconv@_bn
        end         -         block14_sepconv#_bn
        """,
    },
)

REPARAMETERIZED = Family(
    ("skip", "scale", "wide"),
    {
        "timm": r"""
        stem        scale     stem\.conv_(?:1x1|scale)\.(?:conv|bn)
        stem        wide      stem\.conv_kxk(?:\.@)?\.(?:conv|bn)
        block       skip      stages\.#\.#\.identity
        block       scale     stages\.#\.#\.conv_(?:1x1|scale)\.(?:conv|bn)
        block       wide      stages\.#\.#\.conv_kxk(?:\.@)?\.(?:conv|bn)
        head        -         head\.fc
        """,
        "kimm": r"""
        stem        scale     stem/stem_conv_scale/\w+
        stem        wide      stem/stem_conv_kxk_@/\w+
        block       skip      stages_#_#/\w+_skip
        block       scale     stages_#_#/\w+_conv_scale/\w+
        block       wide      stages_#_#/\w+_conv_kxk_@/\w+
        head        -         classifier
        """,
    },
)

FAMILIES = {
    "ResNet": RESNET,
    "ResNetV2": RESNET_V2,
    "DenseNet": DENSENET,
    "MobileNet, EfficientNet": INVERTED_RESIDUALS,
    "InceptionV3": INCEPTION_V3,
    "Xception": XCEPTION,
    "RepVGG, MobileOne": REPARAMETERIZED,
}
