"""The mark of what `make test` leaves to `make test-all`: a reason and a witness."""

import keras
import pytest


def slow(reason, *, witness=None, but_on=None):
    """A mark for tests that cost more than they prove beside their witness.

    Args:
        reason: What takes the time, and why it is worth it now and then.
        witness: The name of a quick test that sees the same behaviour on less, which
            may be the marked test itself, on the cases that are not marked.
        but_on: The backend where it runs in `make test` all the same, and is its own
            witness: for what asks nothing of a backend but that Keras runs.
    """
    if (witness is None) == (but_on is None):
        raise TypeError("A slow test has a witness, or a backend where it is its own.")
    if but_on == keras.backend.backend():
        return pytest.mark.skipif(False, reason=reason)  # a mark that does nothing
    return pytest.mark.slow(reason)
