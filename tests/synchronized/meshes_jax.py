"""The devices that replicas are on."""

import jax
import numpy as np
import replica_cases as cases
from jax.sharding import AxisType, PartitionSpec

jax.config.update("jax_num_cpu_devices", cases.GROUP_REPLICAS)


def _mesh(*sizes):
    return jax.make_mesh(
        sizes,
        ("data", "model")[: len(sizes)],
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[: np.prod(sizes)],
    )


MESH, GROUPS, SQUARE = _mesh(cases.REPLICAS), _mesh(cases.GROUP_REPLICAS), _mesh(2, 2)
SPLIT, SAME = PartitionSpec("data"), PartitionSpec()
