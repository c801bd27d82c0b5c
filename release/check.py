"""Checks what would be released, as `make release-check` has built it in dist/.

The names and numbers agree; each archive holds what it should and no more; and each,
installed alone into a new environment, runs README.md's first example outside of the
clone.

    python release/check.py --backend jax --backend torch
    python release/check.py --backend jax --tag v0.1.0  # at a tag: it must be dated
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_RELEASED = (".ci/",)
EXTRAS = {"tensorflow": "tensorflow-cpu", "jax": "jax", "torch": "torch"}
UNRELEASED = "unreleased"


def main() -> None:
    """Prints what is wrong and exits with 1, or says that nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=EXTRAS, required=True)
    parser.add_argument("--tag", help="the tag that is released, such as v0.1.0")
    options = parser.parse_args()
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    wrong = [*disagreements(ROOT, options.tag), *named(wheel, sdist)]
    wrong += differences(wheel.name, wheel_files(wheel), of_wheel(tracked()))
    wrong += differences(sdist.name, sdist_files(sdist), of_sdist(tracked()))
    for archive in (wheel, sdist):
        # What is in the archive is Python: one framework shows that it installs.
        backends = options.backend if archive == wheel else options.backend[:1]
        for backend in backends:
            print(f"== {archive.name} on {backend}, in a new environment", flush=True)
            wrong += tried(archive, backend)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(f"{wheel.name} and {sdist.name} are what they should be")


def disagreements(root: Path, tag: str | None = None) -> Iterator[str]:
    """Where the package, CHANGELOG.md, CITATION.cff and the tag say different things.

    Args:
        root: The folder of the clone.
        tag: The tag that is released: the version must then have a date.
    """
    version = package_version(root)
    log = read(root / "CHANGELOG.md")
    heading = re.search(r"^## \[(.+?)\] - (.+)$", log, re.M)
    if heading is None or heading[1] != version:
        found = heading[0] if heading else "no such heading"
        yield f"CHANGELOG.md must begin with version {version}: {found}"
        return
    date = heading[2]
    if date != UNRELEASED and not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        yield f"CHANGELOG.md: neither a date nor '{UNRELEASED}': {date}"
        return
    citation = read(root / "CITATION.cff")
    cited = dict(re.findall(r"^(version|date-released): (.+)$", citation, re.M))
    expected = {"version": version}
    if date != UNRELEASED:
        expected["date-released"] = date
    if cited != expected:
        yield f"CITATION.cff must say {expected}: {cited}"
    if tag is not None and tag != f"v{version}":
        yield f"the tag must be v{version}: {tag}"
    if tag is not None and date == UNRELEASED:
        yield f"CHANGELOG.md must give {version} the date of its release"


def package_version(root: Path) -> str:
    """`keras_bn.__version__`, without importing it."""
    code = read(root / "keras_bn" / "__init__.py")
    found = re.search(r'^__version__ = "(.+)"$', code, re.M)
    if found is None:
        raise ValueError("keras_bn/__init__.py must assign __version__")
    return found[1]


def read(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def named(wheel: Path, sdist: Path) -> Iterator[str]:
    """What is wrong with the archives' names, in which the version stands."""
    version = package_version(ROOT)
    for path, expected in (
        (wheel, f"keras_bn-{version}-py3-none-any.whl"),
        (sdist, f"keras_bn-{version}.tar.gz"),
    ):
        if path.name != expected:
            yield f"dist/ must have {expected}: {path.name}"


def tracked() -> set[str]:
    """The files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split("\0")) - {""}


def of_wheel(files: set[str]) -> set[str]:
    """Of the files of the clone, those that a wheel holds: the package alone."""
    return {name for name in files if name.startswith("keras_bn/")}


def of_sdist(files: set[str]) -> set[str]:
    """Of the files of the clone, those that an sdist holds: all that its tests need."""
    return {name for name in files if not name.startswith(NOT_RELEASED)}


def wheel_files(path: Path) -> set[str]:
    """What a wheel holds, less what packaging adds."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return {name for name in names if ".dist-info/" not in name}


def sdist_files(path: Path) -> set[str]:
    """What an sdist holds, less its folder and what packaging adds."""
    with tarfile.open(path) as archive:
        names = [one.name for one in archive.getmembers() if one.isfile()]
    return {name.partition("/")[2] for name in names} - {"PKG-INFO"}


def differences(what: str, found: set[str], expected: set[str]) -> Iterator[str]:
    """What an archive lacks of what it should hold, and what it has beyond that."""
    for name in sorted(expected - found):
        yield f"{what} lacks {name}"
    for name in sorted(found - expected):
        yield f"{what} should not have {name}"


def first_example() -> tuple[str, list[str]]:
    """The first Python of README.md, and the lines that it promises to print."""
    readme = read(ROOT / "README.md")
    code = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)[0]
    return code, re.findall(r"print\(.*\)\s*# (.*)", code)


def tried(archive: Path, backend: str) -> Iterator[str]:
    """What fails when a stranger installs the archive and runs the first example."""
    code, promised = first_example()
    with tempfile.TemporaryDirectory(prefix="keras-bn-release-") as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        scripts = Path(folder) / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python = str(scripts / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        (Path(folder) / "example.py").write_text(code, encoding="utf-8")
        for command, expected in (
            ([*pip, "install", f"{archive}[{EXTRAS[backend]}]"], []),
            ([*pip, "check"], []),
            ([python, "example.py"], promised),
            ([str(scripts / "keras-bn"), "--help"], ["usage: keras-bn"]),
        ):
            result = subprocess.run(
                command,
                cwd=folder,
                env=environment(folder, backend),
                capture_output=True,
                text=True,
                check=False,
            )
            missing = [line for line in expected if line not in result.stdout]
            if result.returncode or missing:
                yield (
                    f"{archive.name} on {backend}: {' '.join(command)}: exit status "
                    f"{result.returncode}, not printed: {missing}\n{result.stdout}\n"
                    f"{result.stderr}"
                )
                return


def environment(folder: str, backend: str) -> dict[str, str]:
    """The caller's variables, less those by which Python would find the clone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return kept | {"KERAS_BACKEND": backend, "KERAS_HOME": f"{folder}/keras"}


if __name__ == "__main__":
    main()
