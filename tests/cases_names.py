"""Which layer is which, written down from the libraries: a table for `test_matching`.

Each line: a prefix of the other library's names, the Keras layer, and the size, of a norm
one number. The nets are the libraries' own, some blocks of each, so that numbers have
gaps, as a rank needs none.
"""
# ruff: noqa: E501

from keras_bn.tools._foreign.pairs import Item

PAIRS = {
    "torchvision ResNet, keras.applications": """
        conv1 conv1_conv 64x3x7x7
        bn1 conv1_bn 64
        layer1.0.conv1 conv2_block1_1_conv 64x64x1x1
        layer1.0.bn1 conv2_block1_1_bn 64
        layer1.0.conv2 conv2_block1_2_conv 64x64x3x3
        layer1.0.bn2 conv2_block1_2_bn 64
        layer1.0.downsample.0 conv2_block1_0_conv 256x64x1x1
        layer1.0.conv3 conv2_block1_3_conv 256x64x1x1
        layer1.0.downsample.1 conv2_block1_0_bn 256
        layer1.0.bn3 conv2_block1_3_bn 256
        layer1.1.conv1 conv2_block2_1_conv 64x256x1x1
        layer1.1.bn1 conv2_block2_1_bn 64
        layer1.1.conv2 conv2_block2_2_conv 64x64x3x3
        layer1.1.bn2 conv2_block2_2_bn 64
        layer1.1.conv3 conv2_block2_3_conv 256x64x1x1
        layer1.1.bn3 conv2_block2_3_bn 256
        layer2.0.bn1 conv3_block1_1_bn 128
        layer2.0.bn2 conv3_block1_2_bn 128
        layer2.0.downsample.1 conv3_block1_0_bn 512
        layer2.0.bn3 conv3_block1_3_bn 512
        fc predictions 1000x2048
    """,
    "torchvision ResNet, kimm": """
        conv1 conv_stem_conv2d 64x3x7x7
        bn1 conv_stem_bn 64
        layer1.0.conv1 layer1_0_conv1_conv2d 64x64x3x3
        layer1.0.bn1 layer1_0_conv1_bn 64
        layer1.0.conv2 layer1_0_conv2_conv2d 64x64x3x3
        layer1.0.bn2 layer1_0_conv2_bn 64
        layer2.0.conv1 layer2_0_conv1_conv2d 128x64x3x3
        layer2.0.bn1 layer2_0_conv1_bn 128
        layer2.0.conv2 layer2_0_conv2_conv2d 128x128x3x3
        layer2.0.downsample.0 layer2_0_downsample_conv2d 128x64x1x1
        layer2.0.bn2 layer2_0_conv2_bn 128
        layer2.0.downsample.1 layer2_0_downsample_bn 128
        fc classifier 1000x512
    """,
    "timm ResNetV2, keras.applications": """
        stem.conv conv1_conv 64x3x7x7
        stages.0.blocks.0.norm1 conv2_block1_preact_bn 64
        stages.0.blocks.0.conv1 conv2_block1_1_conv 64x64x1x1
        stages.0.blocks.0.norm2 conv2_block1_1_bn 64
        stages.0.blocks.0.conv2 conv2_block1_2_conv 64x64x3x3
        stages.0.blocks.0.norm3 conv2_block1_2_bn 64
        stages.0.blocks.0.downsample.conv conv2_block1_0_conv 256x64x1x1
        stages.0.blocks.0.conv3 conv2_block1_3_conv 256x64x1x1
        stages.1.blocks.0.norm1 conv3_block1_preact_bn 256
        stages.1.blocks.0.conv1 conv3_block1_1_conv 128x256x1x1
        stages.1.blocks.0.norm2 conv3_block1_1_bn 128
        stages.1.blocks.0.conv2 conv3_block1_2_conv 128x128x3x3
        stages.1.blocks.0.norm3 conv3_block1_2_bn 128
        stages.1.blocks.0.downsample.conv conv3_block1_0_conv 512x256x1x1
        stages.1.blocks.0.conv3 conv3_block1_3_conv 512x128x1x1
        norm post_bn 2048
        head.fc predictions 1000x2048x1x1
    """,
    "torchvision MobileNetV2, keras.applications": """
        features.0.0 Conv1 32x3x3x3
        features.0.1 bn_Conv1 32
        features.1.conv.0.0 expanded_conv_depthwise 32x1x3x3
        features.1.conv.0.1 expanded_conv_depthwise_BN 32
        features.1.conv.1 expanded_conv_project 16x32x1x1
        features.1.conv.2 expanded_conv_project_BN 16
        features.2.conv.0.0 block_1_expand 96x16x1x1
        features.2.conv.0.1 block_1_expand_BN 96
        features.2.conv.1.0 block_1_depthwise 96x1x3x3
        features.2.conv.1.1 block_1_depthwise_BN 96
        features.2.conv.2 block_1_project 24x96x1x1
        features.2.conv.3 block_1_project_BN 24
        features.18.0 Conv_1 1280x320x1x1
        features.18.1 Conv_1_bn 1280
        classifier.1 predictions 1000x1280
    """,
    "timm MobileNetV2, keras.applications": """
        conv_stem Conv1 32x3x3x3
        bn1 bn_Conv1 32
        blocks.0.0.conv_dw expanded_conv_depthwise 32x1x3x3
        blocks.0.0.bn1 expanded_conv_depthwise_BN 32
        blocks.0.0.conv_pw expanded_conv_project 16x32x1x1
        blocks.0.0.bn2 expanded_conv_project_BN 16
        blocks.1.0.conv_pw block_1_expand 96x16x1x1
        blocks.1.0.bn1 block_1_expand_BN 96
        blocks.1.0.conv_dw block_1_depthwise 96x1x3x3
        blocks.1.0.bn2 block_1_depthwise_BN 96
        blocks.1.0.conv_pwl block_1_project 24x96x1x1
        blocks.1.0.bn3 block_1_project_BN 24
        conv_head Conv_1 1280x320x1x1
        bn2 Conv_1_bn 1280
        classifier predictions 1000x1280
    """,
    "torchvision MobileNetV3, keras.applications": """
        features.0.0 conv 16x3x3x3
        features.0.1 conv_bn 16
        features.1.block.0.0 expanded_conv_depthwise 16x1x3x3
        features.1.block.0.1 expanded_conv_depthwise_bn 16
        features.1.block.1.fc1 expanded_conv_squeeze_excite_conv 8x16x1x1
        features.1.block.1.fc2 expanded_conv_squeeze_excite_conv_1 16x8x1x1
        features.1.block.2.0 expanded_conv_project 16x16x1x1
        features.1.block.2.1 expanded_conv_project_bn 16
        features.2.block.0.0 expanded_conv_1_expand 72x16x1x1
        features.2.block.0.1 expanded_conv_1_expand_bn 72
        features.2.block.1.0 expanded_conv_1_depthwise 72x1x3x3
        features.2.block.1.1 expanded_conv_1_depthwise_bn 72
        features.2.block.2.0 expanded_conv_1_project 24x72x1x1
        features.2.block.2.1 expanded_conv_1_project_bn 24
        features.4.block.0.0 expanded_conv_3_expand 96x24x1x1
        features.4.block.0.1 expanded_conv_3_expand_bn 96
        features.4.block.1.0 expanded_conv_3_depthwise 96x1x5x5
        features.4.block.1.1 expanded_conv_3_depthwise_bn 96
        features.4.block.2.fc1 expanded_conv_3_squeeze_excite_conv 24x96x1x1
        features.4.block.2.fc2 expanded_conv_3_squeeze_excite_conv_1 96x24x1x1
        features.4.block.3.0 expanded_conv_3_project 40x96x1x1
        features.4.block.3.1 expanded_conv_3_project_bn 40
        features.12.0 conv_1 576x96x1x1
        features.12.1 conv_1_bn 576
        classifier.0 conv_2 1024x576
        classifier.3 logits 1000x1024
    """,
    "timm MobileNetV3, kimm": """
        conv_stem conv_stem_conv2d 16x3x3x3
        bn1 conv_stem_bn 16
        blocks.0.0.conv_dw blocks_0_0_conv_dw_dwconv2d 16x1x3x3
        blocks.0.0.bn1 blocks_0_0_conv_dw_bn 16
        blocks.0.0.se.conv_reduce blocks_0_0_se_conv_reduce 8x16x1x1
        blocks.0.0.se.conv_expand blocks_0_0_se_conv_expand 16x8x1x1
        blocks.0.0.conv_pw blocks_0_0_conv_pw_conv2d 16x16x1x1
        blocks.0.0.bn2 blocks_0_0_conv_pw_bn 16
        blocks.1.0.conv_pw blocks_1_0_conv_pw_conv2d 72x16x1x1
        blocks.1.0.bn1 blocks_1_0_conv_pw_bn 72
        blocks.1.0.conv_dw blocks_1_0_conv_dw_dwconv2d 72x1x3x3
        blocks.1.0.bn2 blocks_1_0_conv_dw_bn 72
        blocks.1.0.conv_pwl blocks_1_0_conv_pwl_conv2d 24x72x1x1
        blocks.1.0.bn3 blocks_1_0_conv_pwl_bn 24
        blocks.2.0.conv_pw blocks_2_0_conv_pw_conv2d 96x24x1x1
        blocks.2.0.bn1 blocks_2_0_conv_pw_bn 96
        blocks.2.0.conv_dw blocks_2_0_conv_dw_dwconv2d 96x1x5x5
        blocks.2.0.bn2 blocks_2_0_conv_dw_bn 96
        blocks.2.0.se.conv_reduce blocks_2_0_se_conv_reduce 24x96x1x1
        blocks.2.0.se.conv_expand blocks_2_0_se_conv_expand 96x24x1x1
        blocks.2.0.conv_pwl blocks_2_0_conv_pwl_conv2d 40x96x1x1
        blocks.2.0.bn3 blocks_2_0_conv_pwl_bn 40
        blocks.5.0.conv blocks_5_0_conv2d 576x96x1x1
        blocks.5.0.bn1 blocks_5_0_bn 576
        conv_head conv_head 1024x576x1x1
        classifier classifier 1000x1024
    """,
    "torchvision EfficientNet, keras.applications": """
        features.0.0 stem_conv 32x3x3x3
        features.0.1 stem_bn 32
        features.1.0.block.0.0 block1a_dwconv 32x1x3x3
        features.1.0.block.0.1 block1a_bn 32
        features.1.0.block.1.fc1 block1a_se_reduce 8x32x1x1
        features.1.0.block.1.fc2 block1a_se_expand 32x8x1x1
        features.1.0.block.2.0 block1a_project_conv 16x32x1x1
        features.1.0.block.2.1 block1a_project_bn 16
        features.2.0.block.0.0 block2a_expand_conv 96x16x1x1
        features.2.0.block.0.1 block2a_expand_bn 96
        features.2.0.block.1.0 block2a_dwconv 96x1x3x3
        features.2.0.block.1.1 block2a_bn 96
        features.2.0.block.2.fc1 block2a_se_reduce 4x96x1x1
        features.2.0.block.2.fc2 block2a_se_expand 96x4x1x1
        features.2.0.block.3.0 block2a_project_conv 24x96x1x1
        features.2.0.block.3.1 block2a_project_bn 24
        features.2.1.block.0.0 block2b_expand_conv 144x24x1x1
        features.2.1.block.0.1 block2b_expand_bn 144
        features.2.1.block.1.0 block2b_dwconv 144x1x3x3
        features.2.1.block.1.1 block2b_bn 144
        features.2.1.block.2.fc1 block2b_se_reduce 6x144x1x1
        features.2.1.block.2.fc2 block2b_se_expand 144x6x1x1
        features.2.1.block.3.0 block2b_project_conv 24x144x1x1
        features.2.1.block.3.1 block2b_project_bn 24
        features.8.0 top_conv 1280x320x1x1
        features.8.1 top_bn 1280
        classifier.1 predictions 1000x1280
    """,
    "timm EfficientNetV2, keras.applications": """
        conv_stem stem_conv 24x3x3x3
        bn1 stem_bn 24
        blocks.0.0.conv block1a_project_conv 24x24x3x3
        blocks.0.0.bn1 block1a_project_bn 24
        blocks.0.1.conv block1b_project_conv 24x24x3x3
        blocks.0.1.bn1 block1b_project_bn 24
        blocks.1.0.conv_exp block2a_expand_conv 96x24x3x3
        blocks.1.0.bn1 block2a_expand_bn 96
        blocks.1.0.conv_pwl block2a_project_conv 48x96x1x1
        blocks.1.0.bn2 block2a_project_bn 48
        blocks.3.0.conv_pw block4a_expand_conv 256x64x1x1
        blocks.3.0.bn1 block4a_expand_bn 256
        blocks.3.0.conv_dw block4a_dwconv2 256x1x3x3
        blocks.3.0.bn2 block4a_bn 256
        blocks.3.0.se.conv_reduce block4a_se_reduce 16x256x1x1
        blocks.3.0.se.conv_expand block4a_se_expand 256x16x1x1
        blocks.3.0.conv_pwl block4a_project_conv 128x256x1x1
        blocks.3.0.bn3 block4a_project_bn 128
        conv_head top_conv 1280x256x1x1
        bn2 top_bn 1280
        classifier predictions 1000x1280
    """,
    "torchvision DenseNet, keras.applications": """
        features.conv0 conv1_conv 64x3x7x7
        features.norm0 conv1_bn 64
        features.denseblock1.denselayer1.norm1 conv2_block1_0_bn 64
        features.denseblock1.denselayer1.conv1 conv2_block1_1_conv 128x64x1x1
        features.denseblock1.denselayer1.norm2 conv2_block1_1_bn 128
        features.denseblock1.denselayer1.conv2 conv2_block1_2_conv 32x128x3x3
        features.denseblock1.denselayer2.norm1 conv2_block2_0_bn 96
        features.denseblock1.denselayer2.conv1 conv2_block2_1_conv 128x96x1x1
        features.denseblock1.denselayer2.norm2 conv2_block2_1_bn 128
        features.denseblock1.denselayer2.conv2 conv2_block2_2_conv 32x128x3x3
        features.transition1.norm pool2_bn 256
        features.transition1.conv pool2_conv 128x256x1x1
        features.denseblock2.denselayer1.norm1 conv3_block1_0_bn 128
        features.denseblock2.denselayer1.norm2 conv3_block1_1_bn 128
        features.denseblock2.denselayer2.norm1 conv3_block2_0_bn 160
        features.denseblock2.denselayer2.norm2 conv3_block2_1_bn 128
        features.norm5 bn 1024
        classifier predictions 1000x1024
    """,
    "torchvision DenseNet, kimm": """
        features.conv0 features_conv0_conv2d 64x3x7x7
        features.norm0 features_conv0_bn 64
        features.denseblock1.denselayer1.norm1 features_denseblock1_denselayer1_norm1 64
        features.denseblock1.denselayer1.conv1 features_denseblock1_denselayer1_conv1_conv2d 128x64x1x1
        features.denseblock1.denselayer1.norm2 features_denseblock1_denselayer1_conv1_bn 128
        features.denseblock1.denselayer1.conv2 features_denseblock1_denselayer1_conv2 32x128x3x3
        features.denseblock1.denselayer2.norm1 features_denseblock1_denselayer2_norm1 96
        features.denseblock1.denselayer2.conv1 features_denseblock1_denselayer2_conv1_conv2d 128x96x1x1
        features.denseblock1.denselayer2.norm2 features_denseblock1_denselayer2_conv1_bn 128
        features.denseblock1.denselayer2.conv2 features_denseblock1_denselayer2_conv2 32x128x3x3
        features.transition1.norm features_transition1_norm 256
        features.transition1.conv features_transition1_conv 128x256x1x1
        features.norm5 features_norm5 1024
        classifier classifier 1000x1024
    """,
    "timm RepVGG, kimm": """
        stem.conv_1x1.conv stem/stem_conv_scale/conv2d_2 48x3x1x1
        stem.conv_1x1.bn stem/stem_conv_scale/batch_normalization_2 48
        stem.conv_kxk.conv stem/stem_conv_kxk_0/conv2d_3 48x3x3x3
        stem.conv_kxk.bn stem/stem_conv_kxk_0/batch_normalization_3 48
        stages.0.0.conv_1x1.conv stages_0_0/stages_0_0_conv_scale/conv2d_4 48x48x1x1
        stages.0.0.conv_1x1.bn stages_0_0/stages_0_0_conv_scale/batch_normalization_4 48
        stages.0.0.conv_kxk.conv stages_0_0/stages_0_0_conv_kxk_0/conv2d_5 48x48x3x3
        stages.0.0.conv_kxk.bn stages_0_0/stages_0_0_conv_kxk_0/batch_normalization_5 48
        stages.0.1.identity stages_0_1/stages_0_1_skip 48
        stages.0.1.conv_1x1.conv stages_0_1/stages_0_1_conv_scale/conv2d_6 48x48x1x1
        stages.0.1.conv_1x1.bn stages_0_1/stages_0_1_conv_scale/batch_normalization_6 48
        stages.0.1.conv_kxk.conv stages_0_1/stages_0_1_conv_kxk_0/conv2d_7 48x48x3x3
        stages.0.1.conv_kxk.bn stages_0_1/stages_0_1_conv_kxk_0/batch_normalization_7 48
        head.fc classifier 1000x1280
    """,
    "torchvision Inception, keras.applications": """
        Conv2d_1a_3x3.bn batch_normalization 32
        Conv2d_2a_3x3.bn batch_normalization_1 32
        Conv2d_2b_3x3.bn batch_normalization_2 64
        Mixed_5b.branch3x3dbl_1.bn batch_normalization_8 64
        Mixed_5b.branch5x5_1.bn batch_normalization_6 48
        Mixed_5b.branch3x3dbl_2.bn batch_normalization_9 96
        Mixed_5b.branch1x1.bn batch_normalization_5 64
        Mixed_5b.branch5x5_2.bn batch_normalization_7 64
        Mixed_5b.branch3x3dbl_3.bn batch_normalization_10 96
        Mixed_5b.branch_pool.bn batch_normalization_11 32
        Mixed_6a.branch3x3dbl_1.bn batch_normalization_27 64
        Mixed_6a.branch3x3dbl_2.bn batch_normalization_28 96
        Mixed_6a.branch3x3.bn batch_normalization_26 384
        Mixed_6a.branch3x3dbl_3.bn batch_normalization_29 96
        Mixed_6b.branch1x1.bn batch_normalization_30 192
        Mixed_6b.branch7x7_1.bn batch_normalization_31 128
        Mixed_6b.branch7x7_2.bn batch_normalization_32 128
        Mixed_6b.branch7x7_3.bn batch_normalization_33 192
        Mixed_6b.branch7x7dbl_1.bn batch_normalization_34 128
        Mixed_6b.branch7x7dbl_2.bn batch_normalization_35 128
        Mixed_6b.branch7x7dbl_3.bn batch_normalization_36 128
        Mixed_6b.branch7x7dbl_4.bn batch_normalization_37 128
        Mixed_6b.branch7x7dbl_5.bn batch_normalization_38 192
        Mixed_6b.branch_pool.bn batch_normalization_39 192
        Mixed_7a.branch3x3_1.bn batch_normalization_70 192
        Mixed_7a.branch3x3_2.bn batch_normalization_71 320
        Mixed_7a.branch7x7x3_1.bn batch_normalization_72 192
        Mixed_7a.branch7x7x3_2.bn batch_normalization_73 192
        Mixed_7a.branch7x7x3_3.bn batch_normalization_74 192
        Mixed_7a.branch7x7x3_4.bn batch_normalization_75 192
        Mixed_7b.branch3x3dbl_1.conv conv2d_80 448x1280x1x1
        Mixed_7b.branch3x3dbl_1.bn batch_normalization_80 448
        Mixed_7b.branch3x3_1.conv conv2d_77 384x1280x1x1
        Mixed_7b.branch3x3dbl_2.conv conv2d_81 384x448x3x3
        Mixed_7b.branch3x3_1.bn batch_normalization_77 384
        Mixed_7b.branch3x3dbl_2.bn batch_normalization_81 384
        Mixed_7b.branch3x3_2a.conv conv2d_78 384x384x1x3
        Mixed_7b.branch3x3_2b.conv conv2d_79 384x384x3x1
        Mixed_7b.branch3x3dbl_3a.conv conv2d_82 384x384x1x3
        Mixed_7b.branch3x3dbl_3b.conv conv2d_83 384x384x3x1
        Mixed_7b.branch1x1.conv conv2d_76 320x1280x1x1
        Mixed_7b.branch3x3_2a.bn batch_normalization_78 384
        Mixed_7b.branch3x3_2b.bn batch_normalization_79 384
        Mixed_7b.branch3x3dbl_3a.bn batch_normalization_82 384
        Mixed_7b.branch3x3dbl_3b.bn batch_normalization_83 384
        Mixed_7b.branch_pool.conv conv2d_84 192x1280x1x1
        Mixed_7b.branch1x1.bn batch_normalization_76 320
        Mixed_7b.branch_pool.bn batch_normalization_84 192
    """,
    "timm Xception, keras.applications": """
        bn1 block1_conv1_bn 32
        bn2 block1_conv2_bn 64
        block1.rep.1 block2_sepconv1_bn 128
        block1.rep.4 block2_sepconv2_bn 128
        block1.skipbn batch_normalization_297 128
        block2.rep.2 block3_sepconv1_bn 256
        block2.rep.5 block3_sepconv2_bn 256
        block2.skipbn batch_normalization_298 256
        block12.rep.2 block13_sepconv1_bn 728
        block12.rep.5 block13_sepconv2_bn 1024
        block12.skipbn batch_normalization_300 1024
        bn3 block14_sepconv1_bn 1536
        bn4 block14_sepconv2_bn 2048
    """,
    "timm ResNet with a deep stem, keras-hub": """
        conv1.0 conv1_conv 32x3x3x3
        conv1.1 conv1_bn 32
        conv1.3 conv2_conv 32x32x3x3
        conv1.4 conv2_bn 32
        conv1.6 conv3_conv 64x32x3x3
        bn1 conv3_bn 64
        layer1.0.bn1 stack0_block0_1_bn 64
        layer1.0.bn2 stack0_block0_2_bn 64
        layer1.0.bn3 stack0_block0_3_bn 256
        layer1.0.downsample.1 stack0_block0_0_conv 256x64x1x1
        layer1.0.downsample.2 stack0_block0_0_bn 256
    """,
    "segmentation_models_pytorch EfficientNet, keras.applications": """
        encoder._conv_stem stem_conv 32x3x3x3
        encoder._bn0 stem_bn 32
        encoder._blocks.0._depthwise_conv block1a_dwconv 32x1x3x3
        encoder._blocks.0._bn1 block1a_bn 32
        encoder._blocks.0._se_reduce block1a_se_reduce 8x32x1x1
        encoder._blocks.0._se_expand block1a_se_expand 32x8x1x1
        encoder._blocks.0._project_conv block1a_project_conv 16x32x1x1
        encoder._blocks.0._bn2 block1a_project_bn 16
        encoder._blocks.1._expand_conv block2a_expand_conv 96x16x1x1
        encoder._blocks.1._bn0 block2a_expand_bn 96
        encoder._blocks.1._bn1 block2a_bn 96
        encoder._blocks.1._bn2 block2a_project_bn 24
        encoder._blocks.10._bn0 block2b_expand_bn 144
        encoder._blocks.10._bn1 block2b_bn 144
        encoder._blocks.10._bn2 block2b_project_bn 24
        encoder._conv_head top_conv 1280x320x1x1
        encoder._bn1 top_bn 1280
    """,
    "mmcv MobileNetV2, keras.applications": """
        backbone.conv1.conv Conv1 32x3x3x3
        backbone.conv1.bn bn_Conv1 32
        backbone.layer1.0.conv.0.conv expanded_conv_depthwise 32x1x3x3
        backbone.layer1.0.conv.0.bn expanded_conv_depthwise_BN 32
        backbone.layer1.0.conv.1.conv expanded_conv_project 16x32x1x1
        backbone.layer1.0.conv.1.bn expanded_conv_project_BN 16
        backbone.layer2.0.conv.0.bn block_1_expand_BN 96
        backbone.layer2.0.conv.1.bn block_1_depthwise_BN 96
        backbone.layer2.0.conv.2.bn block_1_project_BN 24
        backbone.conv2.conv Conv_1 1280x320x1x1
        backbone.conv2.bn Conv_1_bn 1280
    """,
    "torchvision DenseNet, keras-hub": """
        features.norm0 conv1_bn 64
        features.denseblock1.denselayer1.norm1 stack1_block1_1_bn 64
        features.denseblock1.denselayer1.norm2 stack1_block1_2_bn 128
        features.transition1.norm transition1_bn 96
        features.denseblock2.denselayer1.norm1 stack2_block1_1_bn 64
        features.denseblock2.denselayer1.norm2 stack2_block1_2_bn 128
        features.norm5 bn 96
    """,
    "flax ResNet, keras.applications": """
        conv_init conv1_conv 64x3x7x7
        bn_init conv1_bn 64
        BottleneckResNetBlock_0/BatchNorm_0 conv2_block1_1_bn 64
        BottleneckResNetBlock_0/BatchNorm_1 conv2_block1_2_bn 64
        BottleneckResNetBlock_0/BatchNorm_2 conv2_block1_3_bn 256
        BottleneckResNetBlock_0/norm_proj conv2_block1_0_bn 256
        BottleneckResNetBlock_1/BatchNorm_0 conv2_block2_1_bn 64
        BottleneckResNetBlock_1/BatchNorm_1 conv2_block2_2_bn 64
        BottleneckResNetBlock_1/BatchNorm_2 conv2_block2_3_bn 256
        BottleneckResNetBlock_10/BatchNorm_0 conv2_block10_1_bn 64
        BottleneckResNetBlock_10/BatchNorm_1 conv2_block10_2_bn 64
        BottleneckResNetBlock_10/BatchNorm_2 conv2_block10_3_bn 256
    """,
    "haiku ResNet, keras.applications": """
        res_net50/~/initial_batchnorm conv1_bn 64
        res_net50/~/block_group_0/~/block_0/~/shortcut_batchnorm conv2_block1_0_bn 256
        res_net50/~/block_group_0/~/block_0/~/batchnorm_0 conv2_block1_1_bn 64
        res_net50/~/block_group_0/~/block_0/~/batchnorm_1 conv2_block1_2_bn 64
        res_net50/~/block_group_0/~/block_0/~/batchnorm_2 conv2_block1_3_bn 256
        res_net50/~/block_group_1/~/block_0/~/shortcut_batchnorm conv3_block1_0_bn 256
        res_net50/~/block_group_1/~/block_0/~/batchnorm_0 conv3_block1_1_bn 64
        res_net50/~/block_group_1/~/block_0/~/batchnorm_1 conv3_block1_2_bn 64
        res_net50/~/block_group_1/~/block_0/~/batchnorm_2 conv3_block1_3_bn 256
    """,
}


def items(names, size=8):
    """Norms, of one size unless a name says another: `"bn:16"`."""
    parts = [one.partition(":") for one in names]
    return [Item(name, "norm", (int(text or size),)) for name, _, text in parts]


def pairs_of(text):
    rows = []
    for line in text.strip().split("\n"):
        prefix, layer, size = line.split()
        sizes = tuple(int(n) for n in size.split("x"))
        rows.append((prefix, layer, "linear" if len(sizes) > 1 else "norm", sizes))
    return rows
