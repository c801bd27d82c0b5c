"""Between calls of a model: processes that share out data, and copies of weights."""

from typing import Any

from keras_bn.backend import copies as copies
from keras_bn.backend import processes as processes_of_backend
from keras_bn.backend.interface import Processes as Processes
from keras_bn.ops._replica_groups import replica_groups


def processes(groups: Any = None, argument: str = "synchronized") -> Processes | None:
    """The processes of this one's group, all if None; None where it is alone."""
    return processes_of_backend(replica_groups(groups, synchronized=True), argument)
