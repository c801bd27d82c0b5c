"""Names of other packages that are not public: any release may be without one.

Whoever asks for one says what holds without it, and sees to it that this is so. They
are asked for in `_keras.py`, and in `backend/*_private.py`, one file a framework;
`tests/test_private_names.py` goes through them, and names what is lost with each.
"""

import functools
import pkgutil
import sys
import warnings
from typing import Any

WITHOUT: dict[str, str] = {}
"""What holds without each name that was asked for, by its path."""


def private(path: str, without: str) -> Any:
    """What stands at `path`, written as "module:attribute"; None where it is gone."""
    WITHOUT[path] = without
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return None


@functools.cache
def warn_of_missing(path: str) -> None:
    """Says, once, what holds because a name is gone."""
    name = path.replace(":", ".")
    package = name.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "of this environment")
    warnings.warn(
        f"The {package} {version} that is installed has no `{name}`, by which keras_bn "
        f"tells how it is called. Without it {WITHOUT[path]}.",
        UserWarning,
        stacklevel=3,
    )
