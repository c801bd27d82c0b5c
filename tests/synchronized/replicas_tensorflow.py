"""Two logical devices under `tf.distribute.MirroredStrategy`, in one process."""

import numpy as np
import replica_cases as cases
import tensorflow as tf

import keras_bn
from keras_bn.backend import tensorflow_replicas

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * cases.GROUP_REPLICAS,
)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
# TensorFlow has this for tests: another strategy's collectives need keys of their own.
tf.distribute.MirroredStrategy._collective_key_base = 1000
ONE = tf.VariableAggregation.ONLY_FIRST_REPLICA
GROUPS = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2", "CPU:3"])


def _strategy(sizes):
    return STRATEGY if len(sizes) == cases.REPLICAS else GROUPS


def start_groups(folder):
    """All replicas are in this process, which goes on with the other cases."""
    return False


def start():
    pass


def stop():
    pass


def _rank():
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def _parts(arrays, sizes):
    """Each replica its rows."""
    ends = cases.ends(sizes)

    def part(context):
        begin, end = ends[context.replica_id_in_sync_group]
        return tuple(tf.convert_to_tensor(one[begin:end]) for one in arrays)

    return _strategy(sizes).experimental_distribute_values_from_function(part)


def _by_rank(values, strategy=STRATEGY):
    return dict(enumerate(strategy.experimental_local_results(values)))


def _step(case, arrays):
    def step(x, dy, mask):
        inputs = (x, tf.constant(arrays["gamma"]), tf.constant(arrays["beta"]))
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y, moments = cases.call(case, *inputs, mask)
        slopes = tape.gradient(y, inputs, output_gradients=dy)
        return (y, *slopes, *moments)

    return step if case.way == "eager" else tf.function(step)


NAMES = ("y", "x", "gamma", "beta", "count", "mean", "variance")


def operations(every):
    """Each replica's results of one call, by case and rank."""
    return {case.name: operation(case) for case in every}


def operation(case):
    """Each replica's results of one call, by its rank."""
    arrays = cases.data(case)
    parts = _parts([arrays[n] for n in ("x", "dy", "mask")], case.sizes)
    strategy = _strategy(case.sizes)
    original = tensorflow_replicas.StrategyReplicas.total
    if case.mutated:
        tensorflow_replicas.StrategyReplicas.total = lambda self, values: values
    try:
        results = strategy.run(_step(case, arrays), args=parts)
    finally:
        tensorflow_replicas.StrategyReplicas.total = original
    found = {n: _by_rank(one, strategy) for n, one in zip(NAMES, results, strict=True)}
    return {
        rank: {n: tf.cast(one[rank], "float64").numpy() for n, one in found.items()}
        for rank in range(len(case.sizes))
    }


def grouped():
    """What else four replicas find, by rank."""
    with GROUPS.scope():
        layer, x = cases.grouped_layer()
        apart = tf.Variable(
            0, synchronization=tf.VariableSynchronization.ON_READ, aggregation=ONE
        )
    parts = _parts((x,), (2, 2, 2, 2))
    GROUPS.run(tf.function(lambda x: layer(x, training=True)), args=parts)
    GROUPS.run(lambda: apart.assign(_rank()))
    moved = [_by_rank(one.value, GROUPS) for one in layer.non_trainable_variables]
    found = {
        rank: {"layer": np.stack([one[rank].numpy() for one in moved])}
        for rank in range(cases.GROUP_REPLICAS)
    }
    found[0]["copies"] = np.stack(keras_bn.backend.copies(apart))
    found[0] |= cases.refusals(
        lambda groups: GROUPS.run(
            tf.function(lambda x: cases.synchronized(x, groups)), args=parts
        )
    )
    return found


def trainings(every, alone=False):
    """The weights after the steps, by training and rank; `alone`, on all of it."""
    return {training.name: train(training, alone) for training in every}


def train(training, alone):
    """The weights after the steps, by rank; `alone`, on the whole batch."""
    strategy = tf.distribute.get_strategy() if alone else STRATEGY
    with strategy.scope():
        model = cases.network(training)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            error = cases.loss(model(x, training=True), y)
        weights = [one.value for one in model.trainable_variables]
        slopes = tape.gradient(error, weights)
        if not alone:
            context = tf.distribute.get_replica_context()
            slopes = context.all_reduce(tf.distribute.ReduceOp.SUM, slopes)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.assign_sub(cases.RATE * slope)

    by_fit = training.by_fit and not alone
    if by_fit:
        cases.fit(model)
    for x, y in () if by_fit else zip(*cases.batches(), strict=True):
        if alone:
            step(x, y)
        else:
            half = cases.BATCH // cases.REPLICAS
            strategy.run(step, args=_parts((x, y), (half, half)))
    if alone:
        return {0: cases.state(model)}
    every = model.trainable_variables + model.non_trainable_variables
    return {
        rank: tf.concat(
            [
                tf.cast(tf.reshape(_by_rank(one.value)[rank], [-1]), "float32")
                for one in every
            ],
            0,
        ).numpy()
        for rank in range(cases.REPLICAS)
    }


def collectives():
    """How often the replicas talk in one call: forward, backward."""
    case = cases.CASES[0]
    arrays = cases.data(case)
    parts = _parts([arrays[n] for n in ("x", "dy", "mask")], case.sizes)
    step = _step(case, arrays)
    whole = tf.function(lambda *parts: STRATEGY.run(step, args=parts))
    graph = whole.get_concrete_function(*parts).graph
    definition = graph.as_graph_def()
    operations = [node.op for node in definition.node]
    for function in definition.library.function:
        operations += [node.op for node in function.node_def]
    return {"both": sum("Collective" in op for op in operations) / cases.REPLICAS}
