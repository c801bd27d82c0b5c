"""Whether updates of variables come out of a call as results."""

import keras


def collects_updates() -> bool:
    """Whether a `keras.StatelessScope`, as of `stateless_call`, is around this call."""
    with keras.StatelessScope() as scope:
        return scope.original_scope is not None
