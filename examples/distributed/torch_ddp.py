"""Train on PyTorch in two processes, with DistributedDataParallel.

    KERAS_BACKEND=torch torchrun --nproc-per-node 2 examples/distributed/torch_ddp.py

Each process trains on its half of every batch; batch normalization sees all of it.
"""

import _digits
import keras
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def main():
    """Train together, then alone on the whole batches, and compare."""
    images, test_images, labels, test_labels = _digits.load()
    dist.init_process_group("gloo")
    model = _digits.build()
    train(DistributedDataParallel(model), images, labels, dist.get_rank())
    _digits.recalibrate(model, images, dist.get_rank())
    together = _digits.weights(model)
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    if first:
        model = _digits.build()
        train(model, images, labels)
        _digits.recalibrate(model, images)
        _digits.check(together, _digits.weights(model), test_images, test_labels)


def train(model, images, labels, rank=None):
    """Plain gradient descent, on the rank's part of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=_digits.LEARNING_RATE)
    for batch in _digits.batches(images, labels):
        x, y = batch if rank is None else _digits.part(batch, rank)
        x, y = map(keras.ops.convert_to_tensor, (x, y))
        optimizer.zero_grad()
        # Without training=True a wrapped model runs in inference mode.
        _digits.loss(model(x, training=True), y).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
