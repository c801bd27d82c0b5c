"""Load a `.keras` file and predict: `python _predict.py MODEL INPUTS OUTPUTS`.

`train.py` runs this under the other backends. `KERAS_BACKEND` chooses the backend;
INPUTS and OUTPUTS are `.npy` files.
"""

import sys

import keras
import numpy as np

import keras_bn  # noqa: F401  (registers the layer, which is all that loading needs)


def main() -> None:
    model_path, inputs_path, outputs_path = sys.argv[1:]
    # Prediction needs no optimizer; nor does a model from JAX want its `jit_compile`
    # under PyTorch, where compiling takes longer than these predictions.
    model = keras.models.load_model(model_path, compile=False)
    np.save(outputs_path, model.predict(np.load(inputs_path), verbose=0))


if __name__ == "__main__":
    main()
