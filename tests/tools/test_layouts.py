"""Kernels from PyTorch: outputs are the module's, layer by layer and as a net."""

import keras
import numpy as np
import pytest
from keras.src.applications import resnet

import keras_bn
from cases_tools import images, numpy, randomize, weights_of
from keras_bn.tools._foreign.layouts import squeezed
from slow import slow

torch = pytest.importorskip("torch")  # `make BACKENDS=jax` leaves it out
L, nn = keras.layers, torch.nn


class _ToEnd(nn.Module):
    """Swaps the channels' axis and the last."""

    def forward(self, x):
        return x.transpose(1, -1)


LINE, IMAGE, BODY = (9, 4), (7, 6, 4), (5, 4, 5, 4)

# A layer and the module that computes the same, and the shape that they take.
LINEAR = {
    "dense": (lambda: L.Dense(3), lambda: nn.Linear(4, 3), (4,)),
    "no bias here": (
        lambda: L.Dense(3, use_bias=False),
        lambda: nn.Linear(4, 3, bias=False),
        (4,),
    ),
    "no bias there": (lambda: L.Dense(3), lambda: nn.Linear(4, 3, bias=False), (4,)),
    "conv1d": (
        lambda: L.Conv1D(3, 3, dilation_rate=2),
        lambda: nn.Conv1d(4, 3, 3, dilation=2),
        LINE,
    ),
    "conv2d": (
        lambda: L.Conv2D(3, (3, 2), strides=2),
        lambda: nn.Conv2d(4, 3, (3, 2), stride=2),
        IMAGE,
    ),
    "groups": (
        lambda: L.Conv2D(6, 3, groups=2),
        lambda: nn.Conv2d(4, 6, 3, groups=2),
        IMAGE,
    ),
    "conv3d": (lambda: L.Conv3D(3, 2), lambda: nn.Conv3d(4, 3, 2), BODY),
    "depthwise1d": (
        lambda: L.DepthwiseConv1D(3, depth_multiplier=2),
        lambda: nn.Conv1d(4, 8, 3, groups=4),
        LINE,
    ),
    "depthwise2d": (
        lambda: L.DepthwiseConv2D((3, 2), depth_multiplier=3),
        lambda: nn.Conv2d(4, 12, (3, 2), groups=4),
        IMAGE,
    ),
    "dense there": (
        lambda: L.Conv1D(3, 1),
        lambda: nn.Sequential(_ToEnd(), nn.Linear(4, 3), _ToEnd()),
        LINE,
    ),
    "dense here": (lambda: L.Dense(3), lambda: nn.Conv1d(4, 3, 1), LINE),
    "transposed1d": (
        lambda: L.Conv1DTranspose(3, 3, strides=2),
        lambda: nn.ConvTranspose1d(4, 3, 3, stride=2),
        LINE,
    ),
    "transposed2d": (
        lambda: L.Conv2DTranspose(3, (3, 2)),
        lambda: nn.ConvTranspose2d(4, 3, (3, 2)),
        IMAGE,
    ),
    "transposed3d": (
        lambda: L.Conv3DTranspose(3, 2),
        lambda: nn.ConvTranspose3d(4, 3, 2),
        BODY,
    ),
}


def norm_of(channels, rank=1):
    """A PyTorch norm with weights and statistics of its own."""
    norm = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][rank]
    return trained(norm(channels, eps=1e-2))


def trained(module, seed=0):
    """No ones and zeros left in any norm, nor like values anywhere."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.rand(value.shape, generator=generator)
            spread = 0.5 if value.ndim < 2 else (value[0].numel()) ** -0.5
            centre = 1.0 if name.endswith(("var", "weight")) and value.ndim < 2 else 0
            value.copy_(centre + spread * (2 * noise - 1))
    return module.eval()


def outputs(module, x):
    """What a module makes of a batch that has its channels last."""
    with torch.no_grad():
        y = module(torch.as_tensor(np.moveaxis(x, -1, 1).copy())).numpy()
    return np.moveaxis(y, 1, -1)


# How a kernel lies is Keras's, the same on every backend; only what runs it is not.
QUICK = {"depthwise2d", "transposed2d"}
ON_TORCH = slow("shapes that JAX compiles op by op", but_on="torch")


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=() if name in QUICK else ON_TORCH) for name in LINEAR],
)
def test_kernels(case):
    layer, module, shape = LINEAR[case]
    layers = [layer(), L.BatchNormalization()]
    model = randomize(keras.Sequential([keras.Input(shape), *layers]))
    rank, channels = len(shape) - 1, model.output_shape[-1]
    theirs = trained(nn.Sequential(module(), norm_of(channels, rank)))
    before = weights_of(model)
    ours = keras_bn.from_torch(model, theirs, layers="all")
    x = images(2, *shape)
    np.testing.assert_allclose(numpy(ours(x)), outputs(theirs, x), atol=1e-5)
    assert weights_of(model) == before
    state = theirs.state_dict()
    back = keras_bn.to_torch(ours, theirs, layers="all")
    assert {name: torch.equal(one, state[name]) for name, one in back.items()} == (
        dict.fromkeys(state, True)
    )


@ON_TORCH
def test_a_convolution_of_one_position_is_a_dense_layer():
    assert squeezed((5, 4, 1, 1)) == (5, 4)
    assert squeezed((5, 1, 1)) == squeezed((5, 1)) == (5, 1)
    assert squeezed((5, 4, 1, 3)) == (5, 4, 1, 3)


@ON_TORCH
@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_a_flattened_image(order):
    layers = [L.Flatten(), keras_bn.BatchNormalization(), L.ReLU(), L.Dense(3)]
    model = keras.Sequential([keras.Input((3, 2, 4)), L.Dropout(0.5), *layers])
    theirs = trained(nn.Sequential(norm_of(24), nn.ReLU(), nn.Linear(24, 3)))
    x = images(5, 3, 2, 4)
    flat = np.moveaxis(x, -1, 1) if order == "channels_first" else x
    with torch.no_grad():
        expected = theirs(torch.as_tensor(flat.reshape(5, 24).copy())).numpy()
    with pytest.raises(ValueError, match=r"`flatten` must say.*from shape \(3, 2, 4\)"):
        keras_bn.from_torch(model, theirs)
    # The norm is seen through; nothing mixes its features.
    ours = keras_bn.from_torch(
        model, theirs.state_dict(), layers="all", flatten=order, epsilon=1e-2
    )
    np.testing.assert_allclose(numpy(ours(x)), expected, atol=1e-5)


@ON_TORCH
def test_an_image_with_channels_first_is_flattened_with_channels_last():
    """By Keras; a reshape leaves the order as it is, which is PyTorch's."""
    shape = (4, 3, 2)
    theirs = trained(nn.Sequential(norm_of(24), nn.Linear(24, 3)))
    x = images(5, *shape)
    with torch.no_grad():
        expected = theirs(torch.as_tensor(x.reshape(5, 24))).numpy()

    def model(flatten):
        layers = [flatten, L.BatchNormalization(), L.Dense(3)]
        return keras.Sequential([keras.Input(shape), *layers])

    flat = model(L.Flatten(data_format="channels_first"))
    ours = keras_bn.from_torch(flat, theirs, layers="all", flatten="channels_first")
    np.testing.assert_allclose(numpy(ours(x)), expected, atol=1e-5)
    reshaped = model(L.Reshape((24,)))
    with pytest.raises(ValueError, match=r"`flatten` must say.*shape \(4, 3, 2\)"):
        keras_bn.from_torch(reshaped, theirs, layers="all")
    keras.config.set_image_data_format("channels_first")
    try:
        ours = keras_bn.from_torch(reshaped, theirs, layers="all")
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(numpy(ours(x)), expected, atol=1e-5)


@ON_TORCH
def test_a_flattened_image_among_other_values():
    image, other = keras.Input((3, 2, 4)), keras.Input((5,))
    inner = keras.Sequential([keras.Input((24,)), L.ReLU()])
    x = L.Concatenate()([inner(L.Flatten()(image)), other])
    x = L.BatchNormalization(name="bn")(x)
    model = keras.Model([image, other], L.Dense(2)(x))
    state = {f"bn.{name}": np.ones(29) for name in ("running_mean", "running_var")}
    with pytest.raises(ValueError, match=r"`flatten` must say.*'bn' takes one, flatt"):
        keras_bn.from_torch(model, state, epsilon=1e-5)
    with pytest.raises(ValueError, match=r"among other values.*\['bn'\]"):
        keras_bn.from_torch(model, state, epsilon=1e-5, flatten="channels_first")
    keras_bn.from_torch(model, state, epsilon=1e-5, flatten="channels_last")


@ON_TORCH
def test_a_pooled_image_has_one_order():
    layers = [L.GlobalAveragePooling2D(keepdims=True), L.Flatten()]
    model = keras.Sequential([keras.Input((3, 2, 4)), *layers, L.BatchNormalization()])
    keras_bn.from_torch(model, norm_of(4))


@ON_TORCH
def test_weights_of_other_layers_are_not_left_in_silence():
    layers = [L.Dense(4), L.LayerNormalization(name="ln"), L.BatchNormalization()]
    layers.append(L.Dense(4, name="lora"))
    model = keras.Sequential([keras.Input((4,)), *layers])
    layers[-1].enable_lora(2)  # its kernel is a sum
    theirs = trained(nn.Sequential(nn.Linear(4, 4), norm_of(4)))
    with pytest.raises(ValueError, match=r"{'ln': 'LayerNormalization', 'lora'"):
        keras_bn.from_torch(model, theirs, layers="all")


def bottleneck(inputs, filters, stride):
    """torchvision's Bottleneck, with the stride where keras.applications has it."""

    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.bn1 = nn.BatchNorm2d(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(filters)
            self.conv3 = nn.Conv2d(filters, 4 * filters, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * filters)
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * filters, 1, stride, bias=False),
                nn.BatchNorm2d(4 * filters),
            )

        def forward(self, x):
            y = self.bn1(self.conv1(x)).relu()
            y = self.bn2(self.conv2(y)).relu()
            return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()

    return Bottleneck()


class ResNet(nn.Module):
    """A small one, with torchvision's names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(bottleneck(64, 8, 1))
        self.layer2 = nn.Sequential(bottleneck(32, 8, 2))
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


@slow("a network that JAX compiles for seconds", but_on="torch")
def test_a_resnet_of_torchvision_in_one_of_keras():
    def stacks(x):
        for i, stride in ((2, 1), (3, 2)):
            x = resnet.stack_residual_blocks_v1(x, 8, 1, stride, name=f"conv{i}")
        return x

    model = resnet.ResNet(
        stacks,
        preact=False,
        use_bias=True,
        weights=None,
        weights_name=None,
        input_shape=(32, 32, 3),
        classes=5,
        classifier_activation=None,
    )
    theirs = trained(ResNet())
    # A block's shortcut and its third norm are of one size, in another order here.
    ours = keras_bn.from_torch(
        model,
        {f"net.{k}": v for k, v in theirs.state_dict().items()},
        layers="all",
        epsilon=1e-5,
    )
    x = images(2, 32, 32, 3)
    received = ours.predict(x, verbose=0)  # compiled as one on JAX, not op by op
    np.testing.assert_allclose(received, outputs(theirs, x), rtol=1e-4, atol=1e-4)
