"""What a release stands on: its numbers agree, and workflows run what `make` has."""

import itertools
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from release import check

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
# The jobs that may write somewhere, and where; they run no code of the repository.
MAY_WRITE = {
    "docs/publish": {"pages": "write", "id-token": "write"},
    "release/publish": {"id-token": "write"},
}
# For those who work on the package: nobody is promised that the lowest serve.
DEVELOPMENT = {"test", "dev", "docs"}


def test_package_changelog_and_citation_agree():
    assert list(check.disagreements(ROOT)) == []


FILES = {
    "keras_bn/__init__.py": '__version__ = "1.2.0"\n',
    "CHANGELOG.md": "## [1.2.0] - 2026-11-26\n\n## [1.1.0] - 2026-10-01\n",
    "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.0\ndate-released: 2026-11-26\n",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "tag", "message"),
    [
        ("CHANGELOG.md", "", "", "v1.2.0", None),
        ("CHANGELOG.md", "", "", "v1.2.1", "the tag must be v1.2.0: v1.2.1"),
        ("CHANGELOG.md", "## [1.2.0]", "## [1.3.0]", None, "begin with version 1.2.0"),
        ("CHANGELOG.md", "2026-11-26", "soon", None, "neither a date nor"),
        ("CHANGELOG.md", "2026-11-26", "unreleased", "v1.2.0", "the date of its"),
        ("CITATION.cff", "\nversion: 1.2.0", "\nversion: 1.1.0", None, "CITATION.cff"),
        ("CITATION.cff", "11-26", "11-27", None, "CITATION.cff must say"),
        ("CITATION.cff", "date-released: 2026-11-26\n", "", None, "CITATION.cff must"),
    ],
)
def test_a_disagreement_is_found(tmp_path, file, old, new, tag, message):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace(old, new) if name == file else text)
    found = list(check.disagreements(tmp_path, tag))
    assert bool(found) == (message is not None)
    assert message is None or any(message in line for line in found)


def test_archives_hold_the_package_and_what_its_tests_need(tmp_path):
    files = {"keras_bn/py.typed", "tests/test_x.py", ".ci/run", "Makefile"}
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for name in ("keras_bn/more.py", "keras_bn-1.dist-info/METADATA"):
            wheel.writestr(name, "")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as sdist:
        for name in ("keras_bn/py.typed", "PKG-INFO", "Makefile"):
            sdist.add(ROOT / "Makefile", f"keras_bn-1/{name}")
    found = check.wheel_files(tmp_path / "x.whl")
    assert list(check.differences("x.whl", found, check.of_wheel(files))) == [
        "x.whl lacks keras_bn/py.typed",
        "x.whl should not have keras_bn/more.py",
    ]
    found = check.sdist_files(tmp_path / "x.tar.gz")
    assert list(check.differences("sdist", found, check.of_sdist(files))) == [
        "sdist lacks tests/test_x.py"
    ]


def test_the_first_example_is_the_quick_start():
    code, promised = check.first_example()
    assert "keras_bn.BatchNormalization()" in code
    assert promised


def test_lowest_versions_are_those_that_are_promised():
    extras = PROJECT["optional-dependencies"]
    public = (lines for extra, lines in extras.items() if extra not in DEVELOPMENT)
    promised = [Requirement(one) for one in itertools.chain(*public)]
    promised += [Requirement(one) for one in PROJECT["dependencies"]]
    floors = {
        (one.name, part.version)
        for one in promised
        for part in one.specifier
        if part.operator == ">="
    }
    assert {one.name for one in promised} - {name for name, _ in floors} == {"keras-bn"}
    lowest = (ROOT / "constraints-lowest.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", lowest, re.M))
    assert set(pins) - {name for name, _ in floors} == {"jaxlib", "pyparsing"}
    assert {name: padded(pins[name]) for name, _ in floors} == {
        name: padded(version) for name, version in floors
    }


def padded(version):
    return (*(int(part) for part in version.split(".")), 0, 0)[:3]


def parsed(path):
    document = yaml.safe_load(path.read_text())
    # YAML 1.1, PyYAML's, takes the key `on` for a boolean.
    return {("on" if key is True else key): value for key, value in document.items()}


def jobs(path):
    return [(f"{path.stem}/{name}", job) for name, job in parsed(path)["jobs"].items()]


ALL_JOBS = [job for path in WORKFLOWS for job in jobs(path)]


def commands(job):
    """What the job's steps run, with each row of its matrix."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    rows = matrix.pop("include", [])
    if matrix:
        rows = [
            dict(zip(matrix, row, strict=True))
            for row in itertools.product(*matrix.values())
        ]
    for step in job["steps"]:
        for row in rows or [{}]:
            run = step.get("run", "")
            for name, value in row.items():
                run = run.replace(f"${{{{ matrix.{name} }}}}", str(value))
            yield run


def test_workflows_run_targets_that_the_makefile_has():
    runs = [run for _, job in ALL_JOBS for run in commands(job) if run]
    targets = set()
    for run in runs:
        program, *arguments = run.split()
        assert program == "make"
        named = [one for one in arguments if not re.match("--|[A-Z]+=", one)]
        assert named
        targets.update(named)
    assert {"lint", "test-jax", "test-lowest", "release-check"} <= targets
    environment = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"}
    dry = subprocess.run(
        ["make", "--dry-run", *sorted(targets)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (dry.returncode, dry.stderr) == (0, "")


def test_workflows_run_all_backends_and_all_pythons_that_are_named():
    targets = {run.split()[1] for _, job in ALL_JOBS for run in commands(job) if run}
    assert {"test-tensorflow", "test-jax", "test-torch"} <= targets
    pythons = set()
    for path in WORKFLOWS:
        pythons |= set(re.findall(r'python(?:-version)?: "(3\.\d+)"', path.read_text()))
    prefix = "Programming Language :: Python :: 3."
    named = {one for one in PROJECT["classifiers"] if one.startswith(prefix)}
    assert named
    assert named <= {f"{prefix}{one.partition('.')[2]}" for one in pythons}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_may_do_little(path):
    workflow = parsed(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow["concurrency"]) == {"group", "cancel-in-progress"}
    for use in re.findall(r"uses: (.*)", path.read_text()):
        # A commit, which nobody can move, and for people what it is called.
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)


@pytest.mark.parametrize(("name", "job"), ALL_JOBS, ids=[name for name, _ in ALL_JOBS])
def test_job_may_do_little(name, job):
    assert job.get("permissions", {}) == MAY_WRITE.get(name, {})
    assert job["timeout-minutes"] > 0
    for step in job["steps"]:
        if "checkout@" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        assert name not in MAY_WRITE or "run" not in step


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form_can_be_filled_in(path):
    form = parsed(path)
    if path.stem == "config":
        assert all(one["url"].startswith("https://") for one in form["contact_links"])
        return
    assert form["name"]
    assert form["description"]
    ids = [one["id"] for one in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(one["attributes"]["label"] for one in form["body"])
