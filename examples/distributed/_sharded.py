"""A Keras model as a PyTorch module whose weights FSDP may shard."""

import torch


class Sharded(torch.nn.Module):
    """Holds the weights of `model`, and calls it by `stateless_call` with them.

    Keras layers read the parameters that Keras made; `fully_shard` puts others in their
    place, so it is given a module of which no Keras layer is a part. Moving statistics
    are buffers: each process keeps them whole.
    """

    def __init__(self, model):
        super().__init__()
        self._model = [model]  # in a list: its own parameters are not this module's
        self.weights = torch.nn.ParameterList(
            one.value.detach().clone() for one in model.trainable_variables
        )
        for number, one in enumerate(model.non_trainable_variables):
            self.register_buffer(f"state_{number}", one.value.detach().clone())

    def forward(self, x):
        """The model's output, in the mode that `train()` and `eval()` set."""
        state = list(self.buffers())
        y, moved = self._model[0].stateless_call(
            list(self.weights), state, x, training=self.training
        )
        with torch.no_grad():
            for old, new in zip(state, moved, strict=True):
                old.copy_(new)
        return y

    def write_back(self):
        """Gives the model the weights, whole again: all processes call it together."""
        model = self._model[0]
        with torch.no_grad():
            for variable, weight in zip(
                model.trainable_variables, self.weights, strict=True
            ):
                whole = getattr(weight, "full_tensor", lambda one=weight: one)
                variable.assign(whole())
            for variable, buffer in zip(
                model.non_trainable_variables, self.buffers(), strict=True
            ):
                variable.assign(buffer)
