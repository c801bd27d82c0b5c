"""Weights in files: safe to read; clear errors where they are not."""

import os
import sys

import keras
import numpy as np
import pytest

import keras_bn
from cases_tools import numpy
from keras_bn.tools._foreign.checkpoint import read
from slow import slow

STATE = {
    f"features.{i}.{name}": np.full(3, i + 1.0, "float32")
    for i in (0, 2, 10)
    for name in ("weight", "bias", "running_mean", "running_var")
}


# What is read are NumPy arrays, on every backend.
ON_TORCH = slow("PyTorch has to be imported", but_on="torch")
by_order = pytest.mark.filterwarnings("ignore:.*paired by their order")


def model():
    layers = [keras_bn.BatchNormalization(epsilon=1e-5) for _ in range(3)]
    return keras.Sequential([keras.Input((3,)), *layers])


def means(ours):
    return [numpy(layer.moving_mean)[0] for layer in ours.layers]


@by_order
@pytest.mark.parametrize("end", [pytest.param("pth", marks=ON_TORCH), "safetensors"])
def test_files(tmp_path, end):
    path = tmp_path / f"weights.{end}"
    if end == "pth":
        import torch

        torch.save({"model": {k: torch.as_tensor(v) for k, v in STATE.items()}}, path)
    else:
        # The file lists names by the alphabet: features.10 comes before features.2.
        from safetensors.numpy import save_file

        save_file(STATE, path)
    for name in (path, str(path)):
        assert means(keras_bn.from_torch(model(), name)) == [1, 3, 11]


@ON_TORCH
@by_order
def test_half_precision_is_read(tmp_path):
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({k: torch.as_tensor(v).bfloat16() for k, v in STATE.items()}, path)
    assert means(keras_bn.from_torch(model(), path)) == [1, 3, 11]


@ON_TORCH
@by_order
def test_what_was_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = tmp_path / "weights.pth"
    torch.save({k: torch.as_tensor(v) for k, v in STATE.items()}, path)
    assert means(keras_bn.from_torch(model(), path)) == [1, 3, 11]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@ON_TORCH
def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Evil()}, "weights.pth")
    with pytest.raises(ValueError, match=r"a file of tensors.*load it yourself"):
        keras_bn.from_torch(model(), "weights.pth")
    assert not (tmp_path / "evil").exists()


@ON_TORCH
@pytest.mark.parametrize(
    "name", ["none.pth", "folder.pth", "text.pth", "text.safetensors"]
)
def test_no_such_file(tmp_path, name):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    why = {"none.pth": ", which does not exist", "folder.pth": ", which is no file"}
    there = why.get(name, "")
    message = f"`state_dict` must be a .*file.*{name}{there}"
    with pytest.raises(ValueError, match=message):
        keras_bn.from_torch(model(), tmp_path / name)


@ON_TORCH
@pytest.mark.parametrize(
    ("package", "end", "advice"),
    [
        ("torch", "pth", "PyTorch reads w.pth, whatever.*`pip install torch`"),
        ("safetensors", "safetensors", r"`pip install keras-bn\[safetensors\]`"),
    ],
)
def test_a_package_that_is_not_there(tmp_path, monkeypatch, package, end, advice):
    (tmp_path / f"w.{end}").write_bytes(b"")
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=advice):
        read(tmp_path / f"w.{end}")
