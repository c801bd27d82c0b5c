"""The processes of `torch.distributed`, between calls of a model."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from keras_bn.backend.groups import Groups
from keras_bn.backend.torch_replicas import ProcessGroup, replicas


class TorchProcesses(NamedTuple):
    """See `keras_bn.backend.interface.Processes`."""

    group: Any

    def gather(self, values: np.ndarray) -> np.ndarray:
        """See `Processes.gather`."""
        served = dist.get_backend_config(self.group)
        device = "cpu" if "cpu:" in served else torch.accelerator.current_accelerator()
        # As bytes: not every accelerator has float64.
        row = torch.from_numpy(np.ascontiguousarray(values).view(np.uint8)).to(device)
        rows = ProcessGroup(self.group).gather(row).cpu().numpy()
        return rows.view(values.dtype)


def processes(groups: Groups) -> TorchProcesses | None:
    """See `keras_bn.backend.processes`."""
    found = replicas(groups, (), ())
    return None if found is None else TorchProcesses(found.group)


def copies(value: torch.Tensor) -> list[np.ndarray]:
    """See `keras_bn.backend.copies`."""
    return [value.detach().cpu().numpy().copy()]
