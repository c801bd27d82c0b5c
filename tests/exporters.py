"""The formats that a model leaves Keras in: how each is written, run and looked into.

One class a format: `write(model, path)`, `predict(path, x)`, and, where a runtime says
what it has made of the file, `operators(path)`: their names, with repetitions.
"""

import sys

import keras
import numpy as np

import frameworks


def _export(model, path, form, **arguments):
    model.export(str(path), format=form, verbose=False, **arguments)


class SavedModel:
    suffix = ""

    def write(self, model, path):
        _export(model, path, "tf_saved_model")

    def predict(self, path, x):
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))  # its functions do not keep it alive
        return loaded.serve(x).numpy()


class Onnx:
    suffix = ".onnx"

    def write(self, model, path):
        _export(model, path, "onnx")

    def predict(self, path, x):
        session = self._session(path)
        (output,) = session.run(None, {session.get_inputs()[0].name: x})
        return output

    def operators(self, path):
        import onnx

        optimized = path.with_suffix(".optimized")
        self._session(path, str(optimized))
        return [node.op_type for node in onnx.load(str(optimized)).graph.node]

    def _session(self, path, optimized=""):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # that what it optimizes is for this machine
        options.optimized_model_filepath = optimized
        return onnxruntime.InferenceSession(str(path), options)


class LiteRT:
    suffix = ".tflite"

    def write(self, model, path):
        _export(model, path, "litert")

    def predict(self, path, x):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path))
        (given,) = interpreter.get_input_details()
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        (output,) = interpreter.get_output_details()
        return interpreter.get_tensor(output["index"])

    def operators(self, path):
        from ai_edge_litert import schema_py_generated as schema

        names = {
            number: name
            for name, number in vars(schema.BuiltinOperator).items()
            if not name.startswith("_")
        }
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        codes = [code.builtinCode for code in model.operatorCodes]
        (graph,) = model.subgraphs
        return [names[codes[one.opcodeIndex]] for one in graph.operators]


class OpenVino:
    suffix = ".xml"

    def write(self, model, path):
        _export(model, path, "openvino")

    def predict(self, path, x):
        import openvino

        # Some processors would compute in bfloat16.
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(path), "CPU", exact)
        (output,) = compiled(x).values()  # one: what is left over is an output too
        return output


class JaxExport:
    suffix = ".jax"

    def write(self, model, path):
        import jax

        (batch,) = jax.export.symbolic_shape("batch")
        shape = (batch, *model.input_shape[1:])
        predict = jax.jit(lambda x: model(x, training=False))
        exported = jax.export.export(predict)(jax.ShapeDtypeStruct(shape, "float32"))
        path.write_bytes(exported.serialize())

    def predict(self, path, x):
        import jax

        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        return np.asarray(exported.call(x))


class TorchExport:
    suffix = ".pt2"

    def write(self, model, path):
        import torch

        batch = torch.export.Dim("batch", min=1, max=1024)
        _export(model, path, "torch", dynamic_shapes={0: batch})

    def predict(self, path, x):
        import torch

        program = torch.export.load(str(path)).module()
        with torch.no_grad():
            return program(torch.from_numpy(x)).numpy()


FORMATS = {
    "SavedModel": SavedModel(),
    "ONNX": Onnx(),
    "LiteRT": LiteRT(),
    "OpenVINO": OpenVino(),
    "jax.export": JaxExport(),
    "torch.export": TorchExport(),
}

# What Keras 3.15.1 does not export with any layer in the model, and what it says.
IMPOSSIBLE = {
    ("jax", "LiteRT"): "LiteRT export requires TensorFlow or PyTorch backend",
    ("jax", "OpenVINO"): "No conversion rule found for operations: XlaCallModule",
    ("torch", "LiteRT"): "you must install the `litert-torch` package",
    ("torch", "SavedModel"): "Detected mismatch between the structure of `inputs`",
}

if sys.version_info >= (3, 13):
    # OpenVINO 2026.4 looks for TensorFlow by an `exec` that binds no local name there.
    for backend in ("jax", "tensorflow", "torch"):
        IMPOSSIBLE[backend, "OpenVINO"] = "name 'tensorflow' is not defined"

if frameworks.KERAS < (3, 15):
    IMPOSSIBLE["torch", "torch.export"] = "Unrecognized format=torch"
    for backend in ("jax", "torch"):
        IMPOSSIBLE[backend, "LiteRT"] = "LiteRT export requires TensorFlow backend"

ONLY = {"jax.export": "jax", "torch.export": "torch"}


def formats():
    """The names of the formats that this backend has an exporter for."""
    backend = keras.backend.backend()
    return [
        name
        for name in FORMATS
        if (backend, name) not in IMPOSSIBLE and ONLY.get(name, backend) == backend
    ]
