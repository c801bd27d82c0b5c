"""Where `keras.layers.BatchNormalization` (Keras 3.15.1) breaks a row of the table.

Per backend: row, scene, and the error that it gives. Of all scenes of the table only
the two smallest are tried, which is enough to tell a row that it breaks.
"""

import frameworks
from promises import Broken, wrong

SCENES = "training", "inference"

_SECOND_ORDER = wrong("(hvp|third|pushed_twice) 0 is off by")
_IN_PLACE = Broken(RuntimeError, "vmap: inplace arithmetic")

BREAKS = {
    # The operator's own second derivative is wrong on a few values a channel.
    "tensorflow": {
        # One of the calls' statistics stays.
        ("stateful_vmap", "training"): Broken(BaseException, "DID NOT RAISE"),
        ("backward_twice", "training"): _SECOND_ORDER,
        ("backward_thrice", "training"): _SECOND_ORDER,
        ("forward_of_forward", "training"): _SECOND_ORDER,
        ("forward_over_backward", "training"): _SECOND_ORDER,
        ("backward_over_forward", "training"): _SECOND_ORDER,
        ("hessian", "training"): _SECOND_ORDER,
    },
    "jax": {
        ("rnn_in_training", "training"): Broken(Exception, "unexpected tracer"),
        ("stateful_vmap", "training"): Broken(BaseException, "DID NOT RAISE"),
    },
    # It scales by gamma in place, and a batch of gammas does not fit in there.
    "torch": {
        ("vmap_over_parameters", "training"): _IN_PLACE,
        ("vmap_over_parameters", "inference"): _IN_PLACE,
        ("gradients_per_parameters", "training"): _IN_PLACE,
        ("gradients_per_parameters", "inference"): _IN_PLACE,
        ("grad_of_vmap", "training"): _IN_PLACE,
        ("grad_of_vmap", "inference"): _IN_PLACE,
        ("compiled", "training"): Broken(Exception, "Failed to convert args"),
        ("stateful_vmap", "training"): _IN_PLACE,
    },
}
if not frameworks.WHOLE_GRAPHS:
    # What it fails at is compiled in pieces there.
    del BREAKS["torch"]["compiled", "training"]
