"""The documentation site: it builds strictly, is complete, and stands by itself."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import keras_bn
import keras_bn.benchmark

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
SOURCE = URLS["Repository"] + "/blob/main/"
API = ROOT / "docs" / "api"
PARTS = [
    *(keras_bn, keras_bn.benchmark),
    *filter(inspect.ismodule, map(vars(keras_bn).get, keras_bn.__all__)),
]


def build(config, site):
    # With --quiet, --strict would see no warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(site)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # Material's, of its future
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT / "mkdocs.yml", folder)
    assert result.returncode == 0, result.stderr
    return folder


BROKEN = {
    "[a page](none.md)": "none.md",
    "[a file](../examples/none.py)": "examples/none.py",
    "[an anchor](#none)": "#none",
    "[another page's anchor](other.md#none)": "other.md#none",
    "[a name][keras_bn.none]": "keras_bn.none",
}


def test_what_leads_nowhere_fails(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n" + "\n\n".join(BROKEN))
    (tmp_path / "docs" / "other.md").write_text("# Other")
    (tmp_path / "docs" / "left_out.md").write_text("# In no menu")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\n"
        "docs_dir: docs\n"
        "nav: [index.md, other.md]\n"
        "hooks: []\n"
        "extra_css: []\n"
        "plugins: [autorefs]\n"
    )
    result = build(config, tmp_path / "site")
    assert result.returncode == 1
    told = (*BROKEN.values(), "left_out.md")
    assert [one for one in told if one not in result.stderr] == []


def shown():
    """What the API's pages show, each name with its page."""
    return [
        (name, page.name)
        for page in sorted(API.glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]


def named(path):
    """The object of a name with dots, without its module of the same name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


PUBLIC = {
    f"{part.__name__}.{name}": getattr(part, name)
    for part in PARTS
    for name in part.__all__
    if name != "__version__" and getattr(part, name) not in PARTS
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_on_one_page(name):
    pages = [page for path, page in shown() if named(path) is PUBLIC[name]]
    assert len(pages) == 1


@pytest.mark.parametrize(("name", "page"), shown())
def test_a_page_shows_public_names(name, page):
    assert name in PUBLIC


@pytest.mark.parametrize(("name", "page"), shown())
def test_a_public_name_is_shown(name, page, site):
    text = (site / "api" / page.replace(".md", ".html")).read_text()
    _, _, after = text.partition(f'id="{name}"')
    assert after.partition("<h2 ")[0].count("<p>") > 0


def links():
    """The README's links, and its pictures', each with its text; without code."""
    text = re.sub(
        r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.M | re.S
    )
    return re.findall(r"\[([^]]*)\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize(("text", "link"), links())
def test_readme_link_leads_somewhere(text, link, site):
    if link.startswith(URLS["Documentation"]):
        page, _, anchor = link.removeprefix(URLS["Documentation"]).partition("#")
        file = site / (page or "index.html")
        assert file.is_file()
        assert not anchor or f'id="{anchor}"' in file.read_text()
    else:
        # An address of others would belong here by name: ours, once moved, must fail.
        assert link.startswith(SOURCE)
        assert (ROOT / link.removeprefix(SOURCE)).is_file()


@pytest.mark.parametrize("wanted", ["Moving statistics lag", "From torch"])
def test_readme_leads_to_what_people_look_for(wanted, site):
    found = [link for text, link in links() if wanted.lower() in text.lower()]
    pages = [site / link.removeprefix(URLS["Documentation"]) for link in found]
    heading = f'id="{wanted.lower().replace(" ", "-")}"'
    assert [page for page in pages if heading in page.read_text()]


FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^>]*>"
    r"|<link\b(?![^>]*rel=\"?canonical)[^>]*href=\"?(?:https?:)?//[^>]*>"
    r"|@import[^;]*//[^;]*;|url\(\"?https?:[^)]*\)"
)


def test_nothing_is_fetched_from_other_hosts(site):
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 10
    texts = [page.read_text() for page in pages]
    assert {one for text in texts for one in FETCHED.findall(text)} == set()
    # With a repository in it, Material's script asks that host for its stars.
    assert not [text for text in texts if 'data-md-component="source"' in text]
