"""What mkdocs cannot be told in mkdocs.yml: addresses, and pages from outside docs/.

A link says where a file is in the repository, as GitHub reads it. On the site what
stands in docs/ is one folder higher, and the README's absolute links, which have to
work on PyPI, are pages beside it.
"""

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
SOURCE = URLS["Repository"] + "/blob/main/"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the addresses from pyproject.toml, where they stand once."""
    config.site_url = URLS["Documentation"]
    # Not `repo_url`, for which each page would ask GitHub's server for its stars.
    config.extra["social"] = [
        {"icon": "fontawesome/brands/git-alt", "link": URLS["Repository"]}
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages beside docs/, and what the one of the examples links to."""
    kinds = ("*.md", "*.py", "*.json", "*.png")
    examples = [p for kind in kinds for p in (ROOT / "examples").rglob(kind)]
    for path in [*(ROOT / page for page in PAGES), *sorted(examples)]:
        files.append(
            File.generated(
                config,
                path.relative_to(ROOT).as_posix(),
                abs_src_path=str(path),
                inclusion=InclusionLevel.INCLUDED,
            )
        )
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Turns links within the repository into links within the site."""
    here = posixpath.dirname(page.file.src_uri)
    outside = page.file.generated_by is not None
    names = {file.url: file.src_uri for file in files}

    def on_site(link: re.Match[str]) -> str:
        start, target, anchor, end = link.groups(default="")
        if target.startswith(URLS["Documentation"]):
            url = target.removeprefix(URLS["Documentation"])
            found = names.get(url or "index.html", url)
        elif target.startswith(SOURCE):
            found = _moved(target.removeprefix(SOURCE))
            if found not in files.src_uris:
                return link[0]
        elif "://" in target or not (outside or target.startswith("..")):
            return link[0]
        else:
            folder = here if outside else posixpath.join("docs", here)
            found = _moved(posixpath.normpath(posixpath.join(folder, target)))
        return f"{start}{posixpath.relpath(found, here or '.')}{anchor}{end}"

    return LINK.sub(on_site, markdown)


def _moved(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix("docs/")
