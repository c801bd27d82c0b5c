"""The saved format of the layer, as JSON: `python tests/golden/regenerate.py` pins it.

Run it after a change that is meant to change what is saved, and read the difference:
files that people have saved must still load.
"""

import json
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras

import keras_bn

FOLDER = Path(__file__).parent
INPUT_SHAPE = (5, 4, 6)

LAYERS = {
    "default": {},
    "axis_1": {"axis": 1},
    "axis_tuple": {"axis": (1, -1)},
    "without_center": {"center": False},
    "without_scale": {"scale": False},
    "renorm": {"renorm": True},
    "renorm_clipping": {
        "renorm": True,
        "renorm_clipping": {"rmax": 3.0, "rmin": 0.3, "dmax": 5.0},
    },
    "activation": {"activation": "relu"},
    "synchronized": {"synchronized": True},
    "replica_groups": {"synchronized": True, "replica_groups": [[0, 1], [2, 3]]},
    "accumulation": {"accumulation_steps": 4},
    "ghost_batches": {"virtual_batch_size": 32},
    "freeze_statistics": {"freeze_statistics": True},
    "plain_average": {"momentum": None},
    "zero_debias": {"zero_debias": True, "renorm": True},
    "schedules": {
        "momentum": keras.optimizers.schedules.CosineDecay(0.5, 100, alpha=0.01),
        "renorm": True,
        "renorm_clipping": {
            "rmax": keras.optimizers.schedules.PolynomialDecay(1.0, 100, 3.0),
            "dmax": 5.0,
        },
    },
    "inference_statistics": {"inference_statistics": "batch"},
    "mixed_bfloat16": {"dtype": "mixed_bfloat16", "renorm": True},
    "float16": {"dtype": "float16", "renorm": True},
    "every_argument_of_keras": {
        "axis": -2,
        "momentum": 0.9,
        "epsilon": 1e-5,
        "center": False,
        "scale": False,
        "beta_initializer": keras.initializers.RandomNormal(stddev=0.1, seed=1),
        "gamma_initializer": keras.initializers.Constant(2.0),
        "moving_mean_initializer": "ones",
        "moving_variance_initializer": keras.initializers.Constant(4.0),
        "beta_regularizer": keras.regularizers.L2(0.125),
        "gamma_regularizer": keras.regularizers.L1(0.25),
        "beta_constraint": keras.constraints.MaxNorm(3.0),
        "gamma_constraint": "non_neg",
        "renorm": True,
        "renorm_clipping": {"rmax": 2.0},
        "renorm_momentum": 0.8,
        "trainable": False,
        "dtype": "mixed_float16",
    },
}


def build(case, layer_class=keras_bn.BatchNormalization):
    """A model of one layer of that case."""
    layer = layer_class(**LAYERS[case], name="norm")
    return keras.Sequential([keras.Input(INPUT_SHAPE), layer], name="model")


def config(model):
    """The layer's `get_config()`."""
    return model.get_layer("norm").get_config()


def weights(model):
    """The layer's weights in order: name, shape, dtype, whether trainable."""
    return [
        [w.name, list(w.shape), w.dtype, w.trainable]
        for w in model.get_layer("norm").weights
    ]


def weights_file(model):
    """What a `.weights.h5` file holds: the shape and dtype at each path."""
    arrays = {}

    def add(path, item):
        if isinstance(item, h5py.Dataset):
            arrays[path] = [list(item.shape), str(item.dtype)]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.weights.h5")
        model.save_weights(path)
        with h5py.File(path) as file:
            file.visititems(add)
    return arrays


def model_file(model):
    """The layer's entry in the `config.json` of a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        with zipfile.ZipFile(path) as file:
            layers = json.loads(file.read("config.json"))["config"]["layers"]
    return layers[-1]


VIEWS = {view.__name__: view for view in (config, weights, weights_file, model_file)}


def look(view, case, layer_class=keras_bn.BatchNormalization):
    """One view of one case, as JSON gives it back."""
    return json.loads(json.dumps(VIEWS[view](build(case, layer_class))))


def path_of(view):
    """The golden file of a view."""
    return FOLDER / f"{view}.json"


if __name__ == "__main__":
    for view in VIEWS:
        golden = {case: look(view, case) for case in LAYERS}
        path_of(view).write_text(json.dumps(golden, indent=2) + "\n")
        print("wrote", path_of(view))
