"""Reference networks with batch normalization in the right places, as Keras models."""

from keras_bn.models.inception_bn import inception_bn
from keras_bn.models.lenet5 import lenet5
from keras_bn.models.mlp import mlp
from keras_bn.models.plain_cnn import plain_cnn
from keras_bn.models.resnet import resnet
from keras_bn.models.vgg import vgg

__all__ = ["inception_bn", "lenet5", "mlp", "plain_cnn", "resnet", "vgg"]
