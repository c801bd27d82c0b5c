"""Whether updates of variables come out of a call as results."""

import keras


def collects_updates() -> bool:
    """Whether a `keras.StatelessScope`, as of `stateless_call`, is around this call."""
    # To ask makes no variables of those that another scope has left to be made.
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope is not None
