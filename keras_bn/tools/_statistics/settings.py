"""What `recalibrate` and its callbacks may be told, checked before anything runs."""

from numbers import Real
from typing import Any

import numpy as np

from keras_bn.ops import _settings
from keras_bn.ops._replica_groups import replica_groups as checked_groups
from keras_bn.tools._statistics import batching

METHODS = ("population", "ema")


def check_settings(
    *,
    steps: Any,
    method: Any,
    prior: Any,
    batch_size: Any,
    layer_by_layer: Any,
    include_frozen: Any,
    verbose: Any,
    synchronized: Any,
    replica_groups: Any,
) -> None:
    """Checks all arguments of `recalibrate` but the model and the data.

    Raises:
        TypeError: An argument of a wrong type.
        ValueError: An argument is not as `recalibrate` says.
    """
    if method not in METHODS:
        raise ValueError(
            f"Argument `method` must be one of {METHODS}. Received: method={method!r}"
        )
    _check_prior(prior, method)
    batching.check_sizes(steps, batch_size)
    _settings.boolean("layer_by_layer", layer_by_layer)
    _settings.boolean("include_frozen", include_frozen)
    _check_verbose(verbose)
    _check_replicas(synchronized, replica_groups, method)


def checked_threshold(threshold: Any) -> float:
    """A distance above 0.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above 0.
    """
    return _settings.positive_number("threshold", threshold)


def check_repeats(model: Any, data: Any, layer_by_layer: bool) -> None:
    """Checks that data can be gone through again, where that is needed.

    Raises:
        ValueError: They are an iterator.
    """
    if layer_by_layer and not batching.can_repeat(model, data):
        raise ValueError(
            "Argument `data` must be such that one can go through it more than once, "
            f"for layer_by_layer=True. Received: the iterator {type(data).__name__}"
        )


def _check_prior(prior: Any, method: str) -> None:
    number = isinstance(prior, Real) and not isinstance(prior, bool)
    known = number and 0 < prior < np.inf
    if prior is not None and not known:
        raise ValueError(
            "Argument `prior` must be a number of samples above 0, or None. Received: "
            f"prior={prior!r}"
        )
    if prior is not None and method != "population":
        raise ValueError(
            'Argument `prior` needs method="population": a moving average starts at '
            f"the old statistics anyway. Received: method={method!r}, prior={prior!r}"
        )


def _check_verbose(verbose: Any) -> None:
    # A string would count as 1; what Keras's bar knows beside 0 and 1 is 2.
    if not isinstance(verbose, (int, np.integer, np.bool_)) or not 0 <= verbose <= 2:
        raise ValueError(
            "Argument `verbose` must be 0 for no progress bar, 1 for one, or 2 for a "
            f"line at its end. Received: verbose={verbose!r}"
        )


def _check_replicas(synchronized: Any, groups: Any, method: str) -> None:
    _settings.boolean("synchronized", synchronized)
    checked_groups(groups, synchronized)
    if synchronized and method != "population":
        raise ValueError(
            'Argument `synchronized` needs method="population": a moving average hangs '
            "on the order of the batches, and those of several processes have none. "
            f"Received: synchronized=True, method={method!r}"
        )
