"""Models that others made, small: one of a family, of three libraries.

Kept apart from `cases_tools`, since the libraries take seconds to import.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import frameworks


class Other(NamedTuple):
    """A model's name and builder, the size of its images, and its batch norm layers.

    Attributes:
        folded: How many fold.
        left: How many do not, and a word of the reason that each of them has.
        holds: What is special about it.
        unsaved: A pattern of the error with which it cannot be saved, or loaded, as a
            graph, by a fault of its layers.
    """

    name: str
    build: Callable[[], Any]
    size: int
    folded: int
    left: tuple[int, str]
    holds: str
    unsaved: str = ""


def _of_keras_hub(name: str, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its other models' dependencies
        try:
            import keras_hub
        except ImportError as error:
            if frameworks.KERAS < (3, 16):
                raise
            pytest.skip(f"KerasHub does not know this Keras: {error}")
    return getattr(keras_hub.models, name)(**arguments)


def _efficientnet():
    return _of_keras_hub(
        "EfficientNetBackbone",
        stackwise_kernel_sizes=[3, 5],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["fused", "unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        input_shape=(32, 32, 3),
    )


def _hgnetv2(size=32, stages=None, light=True):
    return _of_keras_hub(
        "HGNetV2Backbone",
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 32],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=light,
        stackwise_stage_filters=[(8, 8, 16, 1, 2, 3), (16, 8, 32, 1, 2, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, light],
        image_shape=(size, size, 3),
        out_features=stages,
    )


def _mobilenet():
    return _of_keras_hub(
        "MobileNetBackbone",
        stackwise_expansion=[[8, 16], [16]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [16]],
        stackwise_kernel_size=[[3, 3], [5]],
        stackwise_num_strides=[[2, 1], [2]],
        stackwise_se_ratio=[[None, None], [0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2]],
        output_num_filters=32,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=32,
        squeeze_and_excite=0.5,
        image_shape=(32, 32, 3),
        input_num_filters=8,
    )


def _retinanet():
    encoder = _of_keras_hub(
        "ResNetBackbone",
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )
    return _of_keras_hub(
        "RetinaNetBackbone",
        image_encoder=encoder,
        min_level=2,
        max_level=4,
        use_p5=True,
    )


def _dfine():
    stages = ["stage1", "stage2"]
    return _of_keras_hub(
        "DFineBackbone",
        backbone=_hgnetv2(64, stages, light=False),
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_labels=4,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(64, 64),
        feat_strides=[4, 8],
        num_feature_levels=2,
        hidden_dim=16,
        encoder_in_channels=[16, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=16,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.34,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=1,
        out_features=stages,
        image_shape=(64, 64, 3),
        seed=0,
    )


def _of_kimm(name):
    def build():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no weights to download
            import kimm

            model = getattr(kimm.models, name)
            return model(weights=None, input_shape=(32, 32, 3), classes=4)

    return build


def _yolov8():
    import kyolo

    return kyolo.yolov8n(nc=4, input_shape=(64, 64, 3))


ALL = (0, "")
SKIPS = "(Add) is in the way"
OF_KERAS_HUB = "compute_output_spec() got an unexpected keyword argument 'training'"
OTHERS = (
    Other("EfficientNet", _efficientnet, 32, 10, ALL, "norms in layers of its class"),
    Other("HGNetV2", _hgnetv2, 32, 16, ALL, "layers of its own class, three deep"),
    Other("MobileNet", _mobilenet, 32, 13, ALL, "blocks of its own class"),
    Other("RetinaNet", _retinanet, 32, 6, ALL, "a backbone given as an argument"),
    Other(
        "D-FINE",
        _dfine,
        64,
        16,
        (27, OF_KERAS_HUB),
        "configs that hand out live layers and variables",
        # To TensorFlow a variable is a tensor, which can be written, and not be read.
        "Cannot serialize object <Variable|could not be deserialized properly",
    ),
    Other(
        "RepVGG",
        _of_kimm("RepVGGA0"),
        32,
        44,
        (17, SKIPS),
        "branches of a norm alone, and configs that are not what was given",
        "has already been configured to use input shape",
    ),
    Other("LCNet", _of_kimm("LCNet035"), 32, 27, ALL, "a class of model of its own"),
    Other("YOLOv8", _yolov8, 64, 57, ALL, "many branches and three outputs"),
)
