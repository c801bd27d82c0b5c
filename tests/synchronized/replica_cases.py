"""What two replicas compute together: the cases, their data, and a small network."""

from typing import NamedTuple

import keras
import ml_dtypes
import numpy as np
from keras.optimizers.schedules import PolynomialDecay

import keras_bn

REPLICAS = 2
GROUP_REPLICAS = 4
# On torch a replica is a process.
PROCESSES = {"torch": REPLICAS}.get(keras.backend.backend(), 1)
# The script of examples/distributed that docs/distributed.md starts.
EXAMPLE = {
    "tensorflow": "tensorflow_workers",
    "jax": "jax_data_parallel",
    "torch": "torch_ddp",
}[keras.backend.backend()]


class Case(NamedTuple):
    """One call of `batch_norm_train(synchronized=True)` on a batch in two parts."""

    name: str
    sizes: tuple = (4, 4)
    shape: tuple = (5, 6, 3)  # of a sample
    mean: float = 1.0
    stddev: float = 2.0
    dtype: str = "float32"
    masked: bool = False
    weighted: bool = False
    axis: int | tuple = -1
    activation: str | None = None
    correction: tuple | None = None  # r and d
    synchronized: bool = True
    groups: list | None = None  # who takes statistics together
    named: str | None = None  # the same by the name of an axis
    mutated: bool = False  # the backward pass does not add up over the replicas
    way: str = ""  # of running it, where an engine has several


CASES = [
    Case("even"),
    Case("7 and 1", (7, 1)),
    Case("8 and 0", (8, 0)),
    Case("dense", shape=(3,)),
    Case("mean 1000", mean=1000.0, stddev=1.0),
    Case("mean 1000, 7 and 1", (7, 1), mean=1000.0, stddev=1.0),
    Case("bfloat16", dtype="bfloat16"),
    Case("mask", masked=True),
    Case("weights, 7 and 1", (7, 1), weighted=True),
    Case("channels first", shape=(3, 5, 6), axis=1),
    Case("two axes", shape=(5, 6, 3), axis=(1, 3)),
    Case("relu", activation="relu"),
    Case("renorm", correction=(1.5, 0.3)),
    Case("renorm, 7 and 1", (7, 1), correction=(1.5, 0.3)),
    Case("large", shape=(64, 32, 8)),
]
# A shape of its own: what was compiled before is not mutated.
MUTATED = Case("mutated", shape=(5, 7, 3), mutated=True)
LOCAL_CASE = Case("local", synchronized=False)
WAYS = {
    "jax": ["pmap", "pmap, axis named", "shard_map, unchecked"],
    "tensorflow": ["eager"],
    "torch": ["torch.compile"],
}[keras.backend.backend()]
WAY_CASES = [Case(way, way=way) for way in WAYS]
EVERY_CASE = [*CASES, *WAY_CASES, MUTATED, LOCAL_CASE]

PAIRS = [[0, 1], [2, 3]]
GROUP_CASES = [
    Case("pairs", (2, 2, 2, 2), groups=PAIRS),
    Case("crossed, uneven parts", (3, 1, 0, 4), groups=[[0, 3], [2, 1]]),
    Case(
        "uneven, masked",
        *((3, 1, 2, 2), (5, 6, 3), 1000.0, 1.0),
        masked=True,
        groups=[[0, 2, 3], [1]],
    ),
    Case("all in one", (2, 2, 2, 2), shape=(3,), groups=[[1, 0, 3, 2]]),
    Case("renorm", (2, 2, 2, 2), groups=PAIRS, correction=(1.5, 0.3)),
    *{
        "jax": [
            Case("each alone", (2, 2, 2, 2), groups=[[2], [0], [3], [1]]),
            Case("pmap", (2, 2, 2, 2), groups=PAIRS, way="pmap"),
            *(
                Case(
                    f"{way}axis {name}", (2, 2, 2, 2), way=way, groups=found, named=name
                )
                for way in ("", "shard_map, unchecked ")
                for name, found in (("data", [[0, 2], [1, 3]]), ("model", PAIRS))
            ),
        ],
        "tensorflow": [Case("eager", (2, 2, 2, 2), groups=PAIRS, way="eager")],
        "torch": [
            Case("torch.compile", (2, 2, 2, 2), groups=PAIRS, way="torch.compile"),
            Case("process group", (2, 2, 2, 2), groups=PAIRS, way="process group"),
        ],
    }[keras.backend.backend()],
]
# What the engine that runs refuses, and how the error names it.
REFUSED = {
    "missing": (
        [[0], [2, 1]],
        r"replicas here are \[0, 1, 2, 3\]. Received.*without replica 3",
    ),
    "unknown": ([[0, 1], [2, 3, 4]], "Received.*with replica 4"),
    "axis": ("rows", r"Received: replica_groups=\['rows'\]"),
}


def ends(sizes):
    """Where each replica's part of the batch begins and ends."""
    stops = np.cumsum(sizes)
    return list(zip(stops - sizes, stops, strict=True))


def data(case):
    """The whole batch, the gradient that comes back, gamma, beta, and the mask."""
    rng = np.random.default_rng(0)
    shape = (sum(case.sizes), *case.shape)
    axes = {one % len(shape) for one in np.atleast_1d(case.axis)}
    parameter = [n if i in axes else 1 for i, n in enumerate(shape)]
    parameter = parameter if len(axes) > 1 else max(parameter[min(axes)], 1)
    dtype = ml_dtypes.bfloat16 if case.dtype == "bfloat16" else case.dtype
    mask = rng.random(shape[:-1]) < 0.6
    # All of the second half's first samples: replicas have different counts.
    mask[: case.sizes[0] // 2] = False
    if case.weighted:
        mask = (mask * rng.uniform(0.01, 0.1, mask.shape)).astype("float32")
    return {
        # The last samples are unlike the others: both parts' statistics matter.
        "x": (
            rng.normal(case.mean, case.stddev, shape)
            + 3 * (np.arange(len(mask)) > 4).reshape(-1, *[1] * len(case.shape))
        ).astype(dtype),
        "dy": rng.normal(size=shape).astype(dtype),
        "gamma": rng.uniform(0.5, 1.5, parameter).astype("float32"),
        "beta": rng.uniform(-1, 1, parameter).astype("float32"),
        "mask": mask,
    }


def call(case, x, gamma, beta, mask, groups=None):
    """The call of one replica; `groups`, where the engine has its own."""
    correction = None
    if case.correction is not None:
        r, d = case.correction

        def correction(mean, variance):
            del variance
            return keras.ops.ones_like(mean) * r, keras.ops.ones_like(mean) * d

    return keras_bn.ops.batch_norm_train(
        *(x, gamma, beta),
        axis=case.axis,
        mask=mask if case.masked else None,
        weights=mask if case.weighted else None,
        activation=case.activation,
        correction=correction,
        synchronized=case.synchronized,
        replica_groups=groups or case.named or case.groups,
    )


class Training(NamedTuple):
    """Three steps of plain gradient descent on a network with a convolution before."""

    name: str
    synchronized: bool = True
    settings: dict = {}  # noqa: RUF012
    dtype: str = "float32"
    by_fit: bool = False
    domains: bool = False  # of which each replica has another


TRAININGS = [
    Training("plain"),
    Training(
        "renorm, debiased, by schedules",
        settings={
            "momentum": PolynomialDecay(0.5, 2, 0.9),
            "zero_debias": True,
            "renorm": True,
            "renorm_clipping": {"rmax": PolynomialDecay(1.0, 2, 3.0)},
        },
    ),
    Training(
        "accumulation, plain average",
        settings={"accumulation_steps": 3, "momentum": None},
    ),
    # Groups of the whole batch that lie within one replica each.
    Training("ghost batches", settings={"virtual_batch_size": 2}),
    Training("bfloat16", dtype="mixed_bfloat16"),
    Training("domains", domains=True),
    # In two processes of PyTorch's, `fit` of Keras trains two models.
    *([] if keras.backend.backend() == "torch" else [Training("fit", by_fit=True)]),
]
LOCAL = Training("local", synchronized=False)
# One process has the same for the others as for the first of these.
ALONE = [one for one in TRAININGS if not one.by_fit]
BATCH, STEPS, RATE = 8, 3, 0.1


def network(training):
    """The network, with the same weights in every process."""
    keras.utils.set_random_seed(0)
    policy = training.dtype
    if training.domains:
        return _network_of_domains()
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            # No bias: its true gradient is zero.
            keras.layers.Conv2D(3, 3, use_bias=False, dtype=policy),
            keras_bn.BatchNormalization(
                synchronized=training.synchronized,
                dtype=policy,
                **{"momentum": 0.5, **training.settings},
            ),
            keras.layers.ReLU(dtype=policy),
            keras.layers.Flatten(),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )


class Half(keras.layers.Layer):
    """The half of the batch that images are from: of the whole, one for each."""

    def compute_output_spec(self, images):
        return keras.KerasTensor((), "int32")

    def call(self, images):
        if images.shape[0] == BATCH:
            return keras.ops.arange(BATCH, dtype="int32") // (BATCH // 2)
        return keras.ops.cast(keras.ops.mean(images) > 0.5, "int32")


def _network_of_domains():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(3, 3, use_bias=False)(inputs)
    norm = keras_bn.DomainBatchNormalization(2, momentum=0.5, synchronized=True)
    x = keras.layers.Flatten()(keras.layers.ReLU()(norm(x, Half()(inputs))))
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def batches():
    """The whole batch of each step: its second half unlike the first."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(STEPS, BATCH, 6, 6, 2)).astype("float32")
    x[:, BATCH // 2 :] = 2 * x[:, BATCH // 2 :] + 1
    return x, np.tanh(x.mean((2, 3, 4)))[..., None].astype("float32")


def fit(model):
    """The steps as `fit` makes them."""
    x, y = (one.reshape(-1, *one.shape[2:]) for one in batches())
    model.compile(keras.optimizers.SGD(RATE), "mse")
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)


def recalibrated(parts, rank):
    """The statistics after `recalibrate` on this process's part of the data."""
    model = network(TRAININGS[0])
    x = data_to_recalibrate()
    size = len(x) // parts
    keras_bn.recalibrate(
        model, x[rank * size : (rank + 1) * size], batch_size=4, verbose=0
    )
    norm = model.layers[1]
    return np.stack(
        [
            keras.ops.convert_to_numpy(v)
            for v in (norm.moving_mean, norm.moving_variance)
        ]
    )


def data_to_recalibrate():
    """Images whose halves differ."""
    return np.concatenate(batches()[0][:2])


def grouped_layer(groups=PAIRS):
    """A layer whose moving statistics are the last batch's, and a batch."""
    layer = keras_bn.BatchNormalization(
        momentum=0.0, synchronized=True, replica_groups=groups
    )
    layer.build((None, 3))
    return layer, data(Case("", (2, 2, 2, 2), shape=(3,)))["x"]


PARTS = ((0, 2), (2, 9), (9, 9), (9, 16))  # of the data, uneven and empty
TOGETHER = {"all": None, "groups": [[0, 3], [1, 2]]}


def part_of(rank):
    """A process's part of the data to recalibrate on."""
    return data_to_recalibrate()[slice(*PARTS[rank])]


def batches_of(ranks):
    """All batches of these processes: what one process would be given."""
    parts = [part_of(rank) for rank in ranks]
    return [part[i : i + 4] for part in parts for i in range(0, len(part), 4)]


def recalibrated_on(data, **arguments):
    """The statistics after `recalibrate`, and how many samples it saw."""
    model = network(TRAININGS[0])
    report = keras_bn.recalibrate(model, data, batch_size=4, verbose=0, **arguments)
    norm = model.layers[1]
    found = [keras.ops.convert_to_numpy(v) for v in norm.non_trainable_variables]
    return np.stack([*found, np.full(3, report.samples)])


def replica_state(rank, groups=None):
    """A model as replica `rank` might have trained it, unlike the others."""
    model = network(LOCAL)
    mean, variance = model.layers[1].non_trainable_variables
    mean.assign(np.array([1.0, 2.0, 1000.0]) + rank)
    variance.assign(np.array([1.0, 2.0, 0.25]) * (1 + rank))
    return model


def averaged_state(ranks):
    """Mean and variance of the replicas' statistics together, in float64."""
    ranks = np.array(ranks, "float64")[:, None]
    variance = np.array([1.0, 2.0, 0.25]) * (1 + ranks)
    return np.stack(
        [(np.array([1.0, 2.0, 1000.0]) + ranks).mean(0), variance.mean(0) + ranks.var()]
    )


def synchronized(x, groups=None):
    """x normalized by the statistics of all replicas, or of a group."""
    return keras_bn.ops.batch_norm_train(x, synchronized=True, replica_groups=groups)[0]


def refusal(name, attempt):
    """What `attempt` raises, for the results."""
    try:
        attempt()
    except ValueError as error:
        return {f"refused {name}": np.array(str(error))}
    return {}


def refusals(attempt):
    """What `attempt` says to each of the groups that it must refuse."""
    found = {}
    for name, (groups, _) in REFUSED.items():
        found |= refusal(name, lambda groups=groups: attempt(groups))
    return found


def loss(predicted, expected):
    """This part's share of the whole batch's mean squared error."""
    return keras.ops.sum(keras.ops.square(predicted - expected)) / BATCH


def state(model):
    """All weights of a model in one vector, trainable first."""
    every = model.trainable_variables + model.non_trainable_variables
    return np.concatenate(
        [keras.ops.convert_to_numpy(one.value).ravel() for one in every]
    )
