"""Runs Python in a process of its own, on a backend of its own."""

import os
import subprocess
import sys


def run(arguments, backend, timeout=300):
    """Runs `python *arguments` with Keras on `backend`, and returns what it prints.

    Raises RuntimeError with all that it wrote if it fails.
    """
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={
            **os.environ,
            # What this process can import, the new one can, and from the same places.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(
            f"exit status {process.returncode} on {backend}\n"
            f"{process.stdout}\n{process.stderr}"
        )
    return process.stdout
