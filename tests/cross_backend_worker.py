"""What one backend computes, written to files for test_cross_backend.py to compare.

    python cross_backend_worker.py compute FOLDER
    python cross_backend_worker.py load FOLDER

`compute` writes `<backend>.npz` and `<backend>.keras`; `load`, once every backend has
computed, reads the models of all of them and writes `<backend>_loaded.npz`.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from keras import layers

import fresh_process
import keras_bn

BACKENDS = ("tensorflow", "jax", "torch")

# One training call: shape, arguments, shape of the mask, mean and deviation of x.
CALLS = {
    "dense": ((32, 6), {}, None, (3, 2)),
    "image": ((4, 7, 7, 5), {}, None, (3, 2)),
    "axis_1": ((4, 5, 7, 7), {"axis": 1}, None, (3, 2)),
    "axis_tuple": ((16, 3, 4), {"axis": (1, 2)}, None, (3, 2)),
    "mask": ((8, 6, 4), {}, (8, 6), (3, 2)),
    "mask_axis_1": ((8, 4, 6), {"axis": 1}, (8, 6), (3, 2)),
    "mean_1e4": ((64, 4, 4, 3), {}, None, (1e4, 1)),
    "small": ((64, 6), {}, None, (0, 1e-3)),
}
OF_A_CALL = ("y", "mean", "variance", "gradient_x", "gradient_gamma", "gradient_beta")


def norm(name, **arguments):
    return keras_bn.BatchNormalization(name=f"{name}_norm", **arguments)


# The branches of one model: an input's shape, and the layers before a Dense(3). One
# model, because it is compiling that takes the time.
BRANCHES = {
    "convolution": (
        (8, 8, 3),
        lambda name: [
            layers.Conv2D(6, 3, use_bias=False),
            norm(name, momentum=0.9),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
        ],
    ),
    "dense": (
        (6,),
        lambda name: [layers.Dense(8, name="wide"), norm(name, momentum=0.9)],
    ),
    "axis_1": ((4, 5, 5), lambda name: [norm(name, axis=1), layers.Flatten()]),
    "axis_tuple": (
        (4, 3, 5),
        lambda name: [norm(name, axis=(1, -1)), layers.Flatten()],
    ),
    "renorm": (
        (6,),
        lambda name: [
            norm(
                name,
                renorm=True,
                renorm_clipping={"rmax": 1.5, "rmin": 0.5, "dmax": 1.0},
                momentum=0.9,
                renorm_momentum=0.8,
            )
        ],
    ),
    "mask": (
        (6, 4),
        lambda name: [
            layers.Masking(),
            norm(name, momentum=0.9),
            layers.GlobalAveragePooling1D(),
        ],
    ),
    "mixed_bfloat16": ((6,), lambda name: [norm(name, dtype="mixed_bfloat16")]),
}
STATISTICS = ("moving_mean", "moving_variance")
RENORM_STATISTICS = ("moving_stddev", "renorm_mean", "renorm_stddev")


def entries():
    """The names of what `trained` finds."""
    return [
        f"{name}/{entry}"
        for name in BRANCHES
        for entry in ("prediction", *statistics_of(name))
    ]


def statistics_of(branch):
    """The names of the statistics that the branch's layer has."""
    return STATISTICS + (RENORM_STATISTICS if branch == "renorm" else ())


def call(name):
    """One training call of the pure function and its gradients."""
    import frameworks

    shape, arguments, mask_shape, (mean, deviation) = CALLS[name]
    rng = np.random.default_rng(0)
    axis = np.atleast_1d(arguments.get("axis", -1))
    channels = [n if i in axis % len(shape) else 1 for i, n in enumerate(shape)]
    if len(axis) == 1:
        channels = [shape[axis[0]]]
    x = rng.normal(mean, deviation, shape)
    gamma, beta = rng.normal(1, 0.3, channels), rng.normal(0, 0.3, channels)
    dy = rng.normal(size=shape)
    mask = None if mask_shape is None else rng.random(mask_shape) < 0.7

    tensors = [frameworks.tensor(array.astype("float32")) for array in (x, gamma, beta)]
    y, moments, gradients = frameworks.gradients(
        lambda *tensors: keras_bn.ops.batch_norm_train(
            *tensors, mask=mask, **arguments
        ),
        tensors,
        upstream=frameworks.tensor(dy.astype("float32")),
    )
    statistics = map(frameworks.numpy, (moments.mean, moments.variance))
    return dict(zip(OF_A_CALL, (y, *statistics, *gradients), strict=True))


def inputs():
    """An input a branch; some time steps are zeros, which the Masking layer masks."""
    rng = np.random.default_rng(1)
    x = {name: rng.normal(1, 2, (48, *shape)) for name, (shape, _) in BRANCHES.items()}
    x["mask"] *= rng.random((48, 6, 1)) < 0.7
    x["mask"][:, 0] = 1
    return {name: array.astype("float32") for name, array in x.items()}


def build():
    """The model, with the same weights on every backend."""
    starts, ends = {}, {}
    for name, (shape, between) in BRANCHES.items():
        y = starts[name] = keras.Input(shape, name=name)
        for layer in between(name):
            y = layer(y)
        ends[name] = layers.Dense(3, name=f"{name}_end")(y)
    model = keras.Model(starts, ends)
    rng = np.random.default_rng(2)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0.2, 0.2, weight.shape))
    return model


def train(model):
    """Three steps on the same batches on every backend."""
    losses = dict.fromkeys(BRANCHES, "mean_squared_error")
    model.compile(keras.optimizers.SGD(0.01), loss=losses)
    x = inputs()
    targets = {name: array.reshape(48, -1)[:, :3] for name, array in x.items()}
    for start in (0, 16, 32):
        model.train_on_batch(
            *(
                {name: array[start : start + 16] for name, array in arrays.items()}
                for arrays in (x, targets)
            )
        )


def compute(folder):
    arrays = {
        f"{name}/{entry}": array
        for name in CALLS
        for entry, array in call(name).items()
    }
    model = build()
    arrays |= trained(model)
    model.save(folder / f"{keras.backend.backend()}.keras")
    np.savez(folder / f"{keras.backend.backend()}.npz", **arrays)


def trained(model):
    """What is predicted after the training, and the moving statistics."""
    train(model)
    arrays = {}
    for name, prediction in model.predict_on_batch(inputs()).items():
        arrays[f"{name}/prediction"] = prediction
        for statistic in statistics_of(name):
            value = getattr(model.get_layer(f"{name}_norm"), statistic)
            arrays[f"{name}/{statistic}"] = keras.ops.convert_to_numpy(value)
    return arrays


def load(folder):
    arrays = {}
    for saver in BACKENDS:
        model = keras.models.load_model(folder / f"{saver}.keras", compile=False)
        for name, prediction in model.predict_on_batch(inputs()).items():
            arrays[f"{saver}/{name}"] = prediction
    np.savez(folder / f"{keras.backend.backend()}_loaded.npz", **arrays)


def run_everywhere(mode, folder):
    """Runs this on every backend, side by side."""
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda name: fresh_process.run([__file__, mode, folder], name), BACKENDS
            )
        )


if __name__ == "__main__":
    {"compute": compute, "load": load}[sys.argv[1]](Path(sys.argv[2]))
