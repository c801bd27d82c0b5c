"""The images that the examples train on: scikit-learn's digits and Fashion-MNIST."""

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
IDX_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class Dataset:
    """Labelled images: float32 in [0, 1], shape `(count, height, width, 1)`."""

    title: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    classes: tuple[str, ...]

    def head(self, train: int, val: int) -> "Dataset":
        """Return the first `train` and `val` images of the two parts."""
        return replace(
            self,
            x_train=self.x_train[:train],
            y_train=self.y_train[:train],
            x_val=self.x_val[:val],
            y_val=self.y_val[:val],
        )


def digits() -> Dataset:
    """Return scikit-learn's 1,797 digits of 8 x 8; every fifth validates."""
    images, labels = load_digits(return_X_y=True)
    images = as_images(images.reshape(-1, 8, 8), largest=16)
    x_train, x_val, y_train, y_val = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    return Dataset(
        title="Digits",
        x_train=x_train,
        y_train=y_train,
        x_val=x_val,
        y_val=y_val,
        classes=tuple("0123456789"),
    )


def fashion_mnist() -> Dataset:
    """Return Fashion-MNIST: 60,000 images of 28 x 28, and 10,000 that validate.

    Raises:
        FileNotFoundError: if the images are neither in Debian's folder nor to be
            had through `keras.datasets`; the message says how to get them.
        ValueError: if a file in Debian's folder is damaged.
    """
    x_train, y_train, x_val, y_val = _fashion_mnist_arrays()
    return Dataset(
        title="Fashion-MNIST",
        x_train=as_images(x_train, largest=255),
        y_train=y_train,
        x_val=as_images(x_val, largest=255),
        y_val=y_val,
        classes=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    )


LOADERS = {"digits": digits, "fashion_mnist": fashion_mnist}


def as_images(pixels: np.ndarray, *, largest: int) -> np.ndarray:
    """Scale `(count, height, width)` pixels to [0, 1] and add the channel axis."""
    return (pixels / largest).astype("float32")[..., np.newaxis]


def read_idx(path: Path) -> np.ndarray:
    """Read a gzip-compressed IDX file of unsigned bytes.

    The format is: two zero bytes, a type code, the rank; each dimension as a
    big-endian uint32; then the values in C order.

    Args:
        path: the `.gz` file.

    Returns:
        A read-only uint8 array of the shape that the file states.

    Raises:
        ValueError: if the file is not gzip, is no IDX file of unsigned bytes, or
            holds more or fewer values than its shape says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: expected a whole gzip file: {error}") from error
    magic = content[:4]
    if len(magic) < 4 or magic[:3] != bytes((0, 0, IDX_UNSIGNED_BYTE)):
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes, which starts with "
            f"00 00 08, received {magic.hex(' ') or 'an empty file'}"
        )
    header = 4 + 4 * magic[3]
    if len(content) < header:
        raise ValueError(f"{path}: the file ends within its {header}-byte header")
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    expected, received = math.prod(shape), len(content) - header
    if received != expected:
        raise ValueError(
            f"{path}: expected {expected} values for the shape {shape}, "
            f"received {received}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _fashion_mnist_arrays() -> tuple[np.ndarray, ...]:
    # The local folder comes first: it answers at once where there is no network.
    if all((DEBIAN_FOLDER / name).is_file() for name in FASHION_MNIST_FILES):
        return tuple(read_idx(DEBIAN_FOLDER / name) for name in FASHION_MNIST_FILES)
    try:
        train, val = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception for a failed download.
        raise FileNotFoundError(
            "Fashion-MNIST is not on this machine. There are two ways to get it:\n"
            "  1. with a network connection, run this again: keras.datasets "
            f"downloads it (just now that failed: {error});\n"
            "  2. on Debian or Ubuntu, install the package dataset-fashion-mnist, "
            f"which puts it in {DEBIAN_FOLDER} (just now not all of its four files "
            "were there)."
        ) from error
    return (*train, *val)
