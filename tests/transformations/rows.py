"""The table: transformations down, backends across.

A row says what is done, where, to which scenes, and what must come out of it.
"""

from typing import NamedTuple

from promises import Broken
from transformations.scenes import SCENES

TENSORFLOW, JAX, TORCH = "tensorflow", "jax", "torch"
BOTH = JAX, TORCH  # those with transformations of functions
TAPES = TENSORFLOW, TORCH  # those with a record of what was done
EVERYWHERE = TENSORFLOW, JAX, TORCH

EVERY = tuple(SCENES)
# For derivatives of derivatives: a layer's call is one of the function, in the end, and
# what kernels make of axis and activation is theirs at the first order.
SOME = (
    *("training", "mask_relu", "large", "large_first_tanh"),
    *("inference", "inference_large_relu", "function_inference"),
    *("along", "no_update"),
)
FEW = "training", "mask_relu", "inference", "function"
PLAIN = "training", "large", "inference", "inference_large_relu", "function"
INFERENCE = "inference", "inference_first_tanh", "inference_large_relu"
LINEARIZED = "training", "mask_relu", "inference", "function"
# The layer as it is called, with statistics that move: so no renorm where it is
# called twice; and no mask, whose size would be fixed, where another batch is used.
OF_LAYER = "training", "first_tanh", "large", "large_first_tanh", *INFERENCE
TRACED = *OF_LAYER, "function", "function_inference_large"
COMPILED = "training", "first_tanh"  # dear; of inference, backend/test_kernels.py
BATCHED = "training", "first_tanh", "renorm", "large", "inference", "along"
BATCHED_VALUES = "first_tanh", "large", "inference", "along"
# Without an activation, whose own gradient may need the output.
LINEAR = "training", "renorm", "large", "inference", "function", "no_update_large"


# What these show, others of a row do: large what is first and last, of a layer what the
# function does. Plain operators are quick, so that PyTorch has them all.
RARE_OF_EVERY = (
    *("large_mask", "inference_large_first_tanh", "no_update_large"),
    *("function_large", "function_inference_large"),
)
RARE_OF_SOME = "large_first_tanh", "inference", "no_update"
RARE_TRACED = "large_first_tanh", "inference_first_tanh", "function"


class Row(NamedTuple):
    """One transformation.

    Attributes:
        where: The backends that have it.
        scenes: Names in `scenes.SCENES`.
        gives: Quantities, by their names in `expected.Expected`.
        does: The method of the backend's `Glue`; the row's name if None.
        options: Arguments of that method.
        over: For batched calls, what is stacked: "inputs" or "parameters".
        then: An activation that the transformation applies to the output.
        raises: The error that must come: what is asked for has no meaning.
        rare: Of `scenes` those that are left to `make test-all`, but on PyTorch where
            it shares the row.
    """

    where: tuple
    scenes: tuple
    gives: tuple
    does: str | None = None
    options: dict = {}  # noqa: RUF012
    over: str | None = None
    then: str | None = None
    raises: Broken | None = None
    rare: tuple = ()


BACK = "value", "gradient"

STATE = Broken(ValueError, "(?i)moving statistics")

ROWS = {
    # Reverse mode, to the third order.
    "backward": Row(TAPES, EVERY, BACK),
    "backward_twice": Row(TAPES, EVERY, ("hvp",), rare=RARE_OF_EVERY),
    "backward_thrice": Row(TAPES, SOME, ("third",), rare=RARE_OF_SOME),
    "vjp": Row(BOTH, EVERY, BACK),
    "grad_of_grad": Row(BOTH, (*SOME, "renorm"), ("hvp",), rare=RARE_OF_SOME),
    "grad_of_grad_of_grad": Row(BOTH, (*FEW, "large"), ("third",)),
    # Forward mode: accumulators, dual numbers, functions.
    "forward": Row(TAPES, EVERY, ("value", "pushed"), rare=RARE_OF_EVERY),
    "forward_of_forward": Row((TENSORFLOW,), FEW, ("pushed", "pushed_twice")),
    "jvp": Row(BOTH, EVERY, ("value", "pushed"), rare=RARE_OF_EVERY),
    "jvp_of_jvp": Row(BOTH, (*FEW, "large"), ("pushed", "pushed_twice")),
    "linearize": Row((JAX,), FEW, ("value", "pushed")),
    "torch_linearize": Row((TORCH,), LINEARIZED, ("value", "pushed"), "linearize"),
    # One over the other.
    "forward_over_backward": Row(TAPES, SOME, ("gradient", "hvp"), rare=RARE_OF_SOME),
    "backward_over_forward": Row(TAPES, SOME, ("hvp",), rare=RARE_OF_SOME),
    "jvp_of_grad": Row(BOTH, SOME, ("gradient", "hvp"), rare=RARE_OF_SOME),
    "grad_of_jvp": Row(BOTH, SOME, ("hvp",), rare=RARE_OF_SOME),
    # Whole matrices, multiplied by the tangent to be compared.
    "jacobian": Row((TENSORFLOW,), FEW, ("pushed",)),
    "jacrev": Row(BOTH, FEW, ("pushed",)),
    "jacfwd": Row(BOTH, FEW, ("pushed",)),
    "hessian": Row(EVERYWHERE, (*FEW, "along"), ("hvp",)),
    # Batches of calls. `vmap_of_grad` over inputs gives per-sample gradients.
    "vmap_over_inputs": Row(
        EVERYWHERE, BATCHED_VALUES, ("value",), "vmap", over="inputs"
    ),
    "vmap_over_parameters": Row(
        EVERYWHERE, BATCHED_VALUES, ("value",), "vmap", over="parameters"
    ),
    "per_sample_gradients": Row(
        EVERYWHERE, BATCHED, ("gradient",), "vmap_of_grad", over="inputs"
    ),
    "gradients_per_parameters": Row(
        EVERYWHERE, BATCHED, ("gradient",), "vmap_of_grad", over="parameters"
    ),
    "grad_of_vmap": Row(BOTH, BATCHED, ("gradient",), over="parameters"),
    # Computed again in the backward pass.
    "checkpoint": Row((JAX,), PLAIN, BACK),
    "checkpoint_reentrant": Row(
        (TORCH,), PLAIN, BACK, "checkpoint", {"reentrant": True}
    ),
    "checkpoint_not_reentrant": Row(
        (TORCH,), PLAIN, BACK, "checkpoint", {"reentrant": False}
    ),
    "recompute_grad": Row((TENSORFLOW,), PLAIN, BACK),
    # Within the framework's control flow.
    "cond": Row((TENSORFLOW, JAX), (*FEW, "along"), BACK),
    # It takes no `stateless_call`: "Mutating a variable from outside".
    "torch_cond": Row((TORCH,), ("function", "function_inference"), BACK, "cond"),
    "scan": Row((TENSORFLOW, JAX), FEW, BACK),
    "while_loop": Row((TENSORFLOW,), FEW, BACK),
    "while_loop_forward": Row((JAX,), FEW, ("value",), "while_loop"),
    # Traced at one batch size and used at another; sizes that are not known.
    "export": Row((JAX,), (*TRACED, "renorm"), BACK, rare=RARE_TRACED),
    "jit_trace": Row((TORCH,), OF_LAYER, BACK),
    "torch_export": Row((TORCH,), TRACED, ("value",), "export"),
    "make_fx": Row((TORCH,), TRACED, ("value",)),
    "compiled": Row((TORCH,), COMPILED, BACK, rare=("training",)),
    "unknown_batch": Row(
        *((TENSORFLOW,), TRACED, BACK, "compiled", {"unknown": "batch"}),
        rare=RARE_TRACED,
    ),
    "unknown_batch_xla": Row(
        *((TENSORFLOW,), ("training", "inference", "large"), BACK, "compiled"),
        {"unknown": "batch", "jit_compile": True},
    ),
    "unknown_sizes": Row(
        (TENSORFLOW,), OF_LAYER, BACK, "layer_compiled", {"unknown": "all"}
    ),
    # Tensors without values.
    "abstract": Row((JAX,), SOME, ("shape", "dtype")),
    "fake": Row((TORCH,), SOME, ("shape", "dtype")),
    "fake_backward": Row((TORCH,), SOME, ("shape", "dtype")),
    "meta": Row((TORCH,), TRACED, ("shape", "dtype")),
    "symbolic": Row(EVERYWHERE, OF_LAYER, ("shape", "dtype")),
    # What is changed between the call and the backward pass.
    "relu_on_output": Row((TORCH,), LINEAR, BACK, then="relu"),
    "add_to_output": Row((TORCH,), LINEAR, BACK),
    "input_changed": Row((TORCH,), INFERENCE, ("gradient",)),
    "statistics_assigned": Row(TAPES, OF_LAYER, BACK),
    "trained_in_between": Row(TAPES, OF_LAYER, BACK),
    # The layer in others' hands.
    "rnn": Row(TAPES, ("training", "inference"), (*BACK, "moving_mean")),
    "rnn_in_inference": Row((JAX,), ("inference",), (*BACK, "moving_mean"), "rnn"),
    # Statistics cannot come out of there: an error that says so, and no leaked tracer.
    "rnn_in_training": Row((JAX,), ("training",), (), "rnn", raises=STATE),
    "stateful_vmap": Row((*BOTH, TENSORFLOW), ("training",), (), raises=STATE),
}
