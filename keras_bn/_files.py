"""Reading and writing for the command line: each failure has an exit code."""

import importlib
import os
import sys
import tempfile
import textwrap
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bn.tools._graphs.walk import is_batch_norm, sublayers
from keras_bn.tools._statistics.batching import input_names

DONE, FOUND, USAGE, UNREADABLE, UNWRITTEN = range(5)

OPTIONS = {
    "Argument `mapping`": "--map",
    "`mapping`": "--map",
    "`strict=False`": "--no-strict",
}
"""The arguments of tools that are options of another name."""


class Failure(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def in_options(message: str) -> str:
    """A tool's message, in the words of the command."""
    for argument, option in OPTIONS.items():
        message = message.replace(argument, option)
    return message


@contextmanager
def warnings_as_lines(command: str) -> Iterator[None]:
    """Prints what warns a user as a line of the command, without a place in code."""

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            said = in_options(str(message))
            print(f"keras-bn {command}: warning: {said}", file=sys.stderr)
        else:
            otherwise(message, category, *place, **more)

    with warnings.catch_warnings():
        otherwise, warnings.showwarning = warnings.showwarning, show
        yield


def import_first(name: str) -> None:
    """Imports a module of the user's, also from the working directory."""
    sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever the module does
        reason = f"{type(error).__name__}: {error}"
        raise Failure(USAGE, f"--import {name}: {reason}") from error
    finally:
        sys.path.pop(0)


def load(path: Path) -> Any:
    """The model in a file, with its compile state if that can be read."""
    if not path.is_file():
        raise Failure(UNREADABLE, f"the model file must exist. Received: {path}")
    try:
        return keras.saving.load_model(path)
    except Exception as first:
        try:
            # Without the loss and the optimizer, which may be of the user's own.
            model = keras.saving.load_model(path, compile=False)
        except Exception:
            # Keras says of a file that is not a zip that it is not there.
            known = zipfile.is_zipfile(path) or path.suffix in (".h5", ".hdf5")
            reason = _reason(first) if known else "it is no .keras file"
            if "Could not locate" in str(first):
                reason += " (--import MODULE imports the module that registers it)"
            raise Failure(
                UNREADABLE,
                "the model must be a Keras model that can be loaded. Received: "
                f"{path}: {reason}",
            ) from first
        print(f"loaded without its compile state: {_reason(first)}", file=sys.stderr)
        return model


def _reason(error: Exception) -> str:
    """What went wrong: the first line of the message, and the last, if another.

    Keras begins with what it was about to do, and ends with what stopped it; the config
    of the layer, which may be pages, stands between.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return "".join(lines) or type(error).__name__
    return f"{textwrap.shorten(lines[0], 120, placeholder=' ...')} ... {lines[-1]}"


def load_data(path: Path, model: Any, option: str = "--data") -> Any:
    """The inputs, as `model` takes them, in the .npy or .npz file of an option."""
    try:
        # Opened here: NumPy leaves a torn .npz open.
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if isinstance(data, np.ndarray):
                return data
            arrays = dict(data)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Failure(
            UNREADABLE,
            f"{option} must be a .npy or .npz file. Received: {path}: {error}",
        ) from error
    inputs = input_names(model)
    if inputs and set(inputs) <= set(arrays):
        return {name: arrays[name] for name in inputs}
    if "x" in arrays or len(arrays) == 1:
        return arrays.get("x", next(iter(arrays.values())))
    raise Failure(
        UNREADABLE,
        f"{option} must hold the array `x`, one array only, or one for each input "
        f"{inputs}. Received: {path} with {sorted(arrays)}",
    )


def check_model_output(path: Path, force: bool) -> None:
    """Checks, before any work, that a model can be written there."""
    if path.suffix != ".keras":
        raise Failure(USAGE, f"the output must be a .keras file. Received: {path}")
    check_output(path, force)


def write_model(path: Path, force: bool, model: Any) -> None:
    """Saves a model, once it has been seen to come back with the norms that it has.

    A class that makes its layers in its constructor makes them again when it is loaded.
    """

    def save(whole: Path) -> None:
        model.save(whole)
        anew = _made_anew(model, keras.saving.load_model(whole, compile=False))
        if anew:
            raise ValueError(
                f"{len(anew)} batch norm layers would be made anew when the file is "
                f"loaded, by the constructor of a class that holds them: {anew}"
            )

    write(path, force, save)


def _made_anew(model: Any, loaded: Any) -> list[str]:
    """The batch norm layers of `loaded` that `model` has not got, by their class."""
    expected = Counter(type(one) for _, one in sublayers(model))
    found = [(path, one) for path, one in sublayers(loaded) if is_batch_norm(one)]
    more = []
    for path, one in found:
        expected[type(one)] -= 1
        if expected[type(one)] < 0:
            more.append(path)
    return more


def check_output(path: Path, force: bool) -> None:
    """Checks that a file can be written there, and overwrites none."""
    if path.exists() and not force:
        raise Failure(UNWRITTEN, f"{path} exists: --force overwrites it")
    if not path.parent.is_dir():
        raise Failure(UNWRITTEN, f"the folder must exist. Received: {path.parent}")


def write(path: Path, force: bool, save: Callable[[Any], None]) -> None:
    """Saves beside `path` and moves it there, so that no half file is ever seen."""
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=".keras-bn-"
        ) as folder:
            whole = Path(folder) / path.name
            save(whole)
            check_output(path, force)  # something may have come there meanwhile
            os.replace(whole, path)
    except (OSError, ValueError, ImportError) as error:
        raise Failure(UNWRITTEN, f"{path} could not be written: {error}") from error


def served(tool: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What a tool returns; its errors become failures of the command."""
    try:
        return tool(*arguments, **settings)
    except (ValueError, TypeError, ImportError) as error:
        raise Failure(UNREADABLE, in_options(str(error))) from error
    except Exception as error:
        # Of the backend, or of a layer of the user's: what Python exits with, 1, would
        # say that `inspect` has found something.
        message = f"the model fails: {type(error).__name__}: {error}"
        raise Failure(UNREADABLE, message) from error
