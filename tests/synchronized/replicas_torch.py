"""Two processes of `torch.distributed` with gloo, and `DistributedDataParallel`."""

import os
import sys
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import keras
import numpy as np
import replica_cases as cases
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import frameworks
import keras_bn
from keras_bn.backend import torch_replicas

sys.path.append(str(Path(__file__).parents[2] / "examples" / "distributed"))
from _sharded import Sharded

# Here, so that the processes, which are forked later, share what it imports. Nothing is
# differentiated before: PyTorch's builds for CUDA refuse that on both sides of a fork.
COMPILED = torch.compile(
    cases.call, backend="aot_eager", fullgraph=frameworks.WHOLE_GRAPHS
)
torch.compile(torch.sin, backend="aot_eager")(torch.ones(2))
# Of two replicas the second, of four the first: three seconds for each. What the others
# compute eagerly must meet it in the same collectives.
COMPILES = {cases.REPLICAS: 1, cases.GROUP_REPLICAS: 0}


def start():
    """Joins the other process; the environment says where it is."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=200))


def stop():
    dist.destroy_process_group()


def start_groups(folder):
    """Joins the other three; two of the four are only for this: whether it is one."""
    rank = int(os.environ["RANK"])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/processes",
        rank=rank,
        world_size=cases.GROUP_REPLICAS,
        timeout=timedelta(seconds=200),
    )
    return rank >= cases.REPLICAS


def grouped():
    """What else four processes find: this one's, by rank."""
    rank = dist.get_rank()
    found = {
        f"train {name}": _train_sharded(
            init_device_mesh("cpu", sizes, mesh_dim_names=("replicas", "shards")[-n:])
        )
        for name, sizes, n in (("FSDP", (4,), 1), ("HSDP", (2, 2), 2))
    }
    layer, x = cases.grouped_layer()
    x = torch.as_tensor(x[2 * rank : 2 * rank + 2])
    layer(x, training=True)
    found["layer"] = np.stack(
        [one.value.numpy() for one in layer.non_trainable_variables]
    )
    found |= cases.refusals(lambda groups: cases.synchronized(x, groups))
    if rank == 3:
        alone = [[0, 1, 2]]
        found |= cases.refusal("this one", lambda: cases.synchronized(x, alone))
    part = cases.part_of(rank)
    for by_layer in (False, True):
        for name, groups in cases.TOGETHER.items():
            found[f"recalibrated {name} {by_layer}"] = cases.recalibrated_on(
                part,
                synchronized=True,
                replica_groups=groups,
                layer_by_layer=by_layer,
            )
    # The others must not wait for the one that fails.
    found |= cases.refusal("failed part", lambda: _recalibrate_and_fail(rank))
    model = cases.replica_state(rank)
    report = keras_bn.average_statistics(model)
    found["averaged"] = cases.state(model)[-2 * 3 :].reshape(2, 3)
    found["averaged, replicas"] = report.replicas
    sharded = fully_shard(torch.nn.Sequential(layer))
    found |= cases.refusal("replaced weights", lambda: sharded[0](x))
    return {rank: found}


def _recalibrate_and_fail(rank):
    data = cases.part_of(0)
    data = data * np.nan if rank == 1 else data[..., :1] if rank == 2 else data
    keras_bn.recalibrate(
        cases.network(cases.TRAININGS[0]), data, verbose=0, synchronized=True
    )


def _train_sharded(mesh):
    """The weights after the steps, with weights that FSDP has sharded over `mesh`."""
    model = cases.network(cases.TRAININGS[0])
    module = fully_shard(Sharded(model), mesh=mesh)
    assert all(isinstance(one, DTensor) for one in module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=cases.RATE)
    replicas, size = mesh.size(), cases.BATCH // mesh.size()
    part = slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # gradients are averaged here
        for x, y in zip(*cases.batches(), strict=True):
            optimizer.zero_grad()
            error = cases.loss(
                module(torch.as_tensor(x[part])), torch.as_tensor(y[part])
            )
            (replicas * error).backward()
            optimizer.step()
    module.write_back()
    torch_replicas._within_fsdp = False
    return cases.state(model)


@contextmanager
def _total_of(function):
    """With another sum over the replicas in the backward pass."""
    original = torch_replicas.ProcessGroup.total
    torch_replicas.ProcessGroup.total = function
    try:
        yield
    finally:
        torch_replicas.ProcessGroup.total = original


def operations(every):
    """Each replica's results of one call, by case and rank."""
    return {case.name: operation(case) for case in every}


def operation(case):
    """This process's results of one call, by its rank."""
    rank = dist.get_rank()
    begin, end = cases.ends(case.sizes)[rank]
    tensors = {
        name: keras.ops.convert_to_tensor(
            one[begin:end] if name in ("x", "dy", "mask") else one
        )
        for name, one in cases.data(case).items()
    }
    leaves = [tensors[name].requires_grad_() for name in ("x", "gamma", "beta")]
    call, groups = cases.call, None
    if case.way == "process group":
        groups, _ = dist.new_subgroups_by_enumeration(case.groups)
    elif case.way and rank == COMPILES[len(case.sizes)]:
        call = COMPILED
    y, moments = call(case, *leaves, tensors["mask"], groups)
    wrong = torch_replicas.ProcessGroup.total
    if case.mutated:
        wrong = lambda _, values: values  # noqa: E731
    with _total_of(wrong):
        dx, dgamma, dbeta = torch.autograd.grad(y, leaves, tensors["dy"])
    found = dict(zip(("count", "mean", "variance"), moments, strict=True))
    found |= {"y": y, "x": dx, "gamma": dgamma, "beta": dbeta}
    return {rank: {k: v.detach().double().numpy() for k, v in found.items()}}


def trainings(every, alone=False):
    """The weights after the steps, by training and rank; `alone`, on all of it."""
    return {training.name: train(training, alone) for training in every}


def train(training, alone):
    """The weights after the steps, by rank; `alone`, on the whole batch."""
    model = cases.network(training)
    run = model if alone else torch.nn.parallel.DistributedDataParallel(model)
    rank, replicas = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    size = cases.BATCH // replicas
    part = slice(rank * size, (rank + 1) * size)
    optimizer = torch.optim.SGD(
        [v.value for v in model.trainable_variables], lr=cases.RATE
    )
    for x, y in zip(*cases.batches(), strict=True):
        optimizer.zero_grad()
        predicted = run(torch.as_tensor(x[part]), training=True)
        # DDP takes the mean over the processes, not the sum.
        (replicas * cases.loss(predicted, torch.as_tensor(y[part]))).backward()
        optimizer.step()
    return {rank: cases.state(model)}


def collectives():
    """How often the processes talk in one call: forward, backward."""
    counts = []
    names = "all_gather_single", "all_reduce"
    originals = [getattr(dist, name) for name in names]

    def counted(name, function):
        def call(*args, **kwargs):
            counts.append(name)
            return function(*args, **kwargs)

        return call

    for name, function in zip(names, originals, strict=True):
        setattr(dist, name, counted(name, function))
    try:
        operation(cases.CASES[0])
    finally:
        for name, function in zip(names, originals, strict=True):
            setattr(dist, name, function)
    return {"forward": counts.count(names[0]), "both": len(counts)}
