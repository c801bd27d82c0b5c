"""Train on PyTorch with weights that are sharded over two processes: FSDP.

    KERAS_BACKEND=torch torchrun --nproc-per-node 2 examples/distributed/torch_fsdp.py

Each process holds a part of the weights (as DTensors) and trains on its half of every
batch; batch normalization sees all of it. A mesh of two axes makes it HSDP.
"""

import _digits
import torch
import torch.distributed as dist
from _sharded import Sharded
from torch.distributed.fsdp import fully_shard
from torch_ddp import train


def main():
    """Train together, then alone on the whole batches, and compare."""
    images, test_images, labels, test_labels = _digits.load()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = _digits.build()
    sharded = Sharded(model)
    mesh = torch.distributed.init_device_mesh("cpu", (_digits.PROCESSES,))
    fully_shard(sharded, mesh=mesh)
    train_sharded(sharded, images, labels, rank)
    sharded.write_back()
    together = _digits.weights(model)
    dist.destroy_process_group()
    if rank == 0:
        model = _digits.build()
        train(model, images, labels)
        _digits.check(together, _digits.weights(model), test_images, test_labels)


def train_sharded(module, images, labels, rank):
    """Plain gradient descent, on the rank's part of each batch."""
    optimizer = torch.optim.SGD(module.parameters(), lr=_digits.LEARNING_RATE)
    module.train()
    for batch in _digits.batches(images, labels):
        x, y = map(torch.as_tensor, _digits.part(batch, rank))
        optimizer.zero_grad()
        _digits.loss(module(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
