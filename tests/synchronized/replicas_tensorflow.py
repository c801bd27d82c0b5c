"""Two logical devices under `tf.distribute.MirroredStrategy`, in one process."""

import replica_cases as cases
import tensorflow as tf

from keras_bn.backend import tensorflow_context

PROCESSES = 1
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * cases.REPLICAS,
)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def start():
    pass


def stop():
    pass


def _parts(arrays, sizes):
    """Each replica its rows."""
    ends = cases.ends(sizes)

    def part(context):
        begin, end = ends[context.replica_id_in_sync_group]
        return tuple(tf.convert_to_tensor(one[begin:end]) for one in arrays)

    return STRATEGY.experimental_distribute_values_from_function(part)


def _by_rank(values):
    return dict(enumerate(STRATEGY.experimental_local_results(values)))


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


def operation(case):
    """Each replica's results of one call, by its rank."""
    arrays = cases.data(case)
    parts = _parts([arrays[n] for n in ("x", "dy", "mask")], case.sizes)
    original = tensorflow_context.StrategyReplicas.total
    if case.mutated:
        # The rows of the forward pass are summed too; those have two axes.
        tensorflow_context.StrategyReplicas.total = lambda self, values: (
            values
            if values.shape[0] == 2 and values.shape[1] == 3
            else original(self, values)
        )
    try:
        results = STRATEGY.run(_step(case, arrays), args=parts)
    finally:
        tensorflow_context.StrategyReplicas.total = original
    found = {n: _by_rank(one) for n, one in zip(NAMES, results, strict=True)}
    return {
        rank: {n: tf.cast(one[rank], "float64").numpy() for n, one in found.items()}
        for rank in range(cases.REPLICAS)
    }


def train(training, alone=False):
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
            [tf.reshape(_by_rank(one.value)[rank], [-1]) for one in every], 0
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
