"""A hook of mkdocs: pages link to files of the repository as on a Git host, and the links work.

A page may link to a file outside docs/ by its relative path, e.g. ../experiments/RESULTS.md. That
file becomes part of the site, under repository/: Markdown as a page (not in the navigation, and not
in the search), anything else as it is. Its own links are followed in the same way. A link to what is
not a file stays as it is, and mkdocs, which is strict here, fails with its name.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = "docs"
SITE_FOLDER = "repository"
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(?=[)\s])")
"""A Markdown link to a path; one with a colon goes to another host."""


def repository_path(page: str) -> str:
    """Where a page of the site lies in the repository."""
    inside = page.removeprefix(f"{SITE_FOLDER}/")
    return inside if inside != page else f"{DOCS}/{page}"


def site_path(path: str) -> str:
    """Where a file of the repository lies in the site's source."""
    inside = path.removeprefix(f"{DOCS}/")
    return inside if inside != path else f"{SITE_FOLDER}/{path}"


def target(page: str, link: str) -> str | None:
    """The repository's file that a page's link names; None if it names none."""
    path = normpath(PurePosixPath(repository_path(page)).parent / link)
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def linked(pages: Iterable[str], read: Callable[[str], str]) -> list[str]:
    """The files outside docs/ that pages link to, and those that these link to."""
    found: list[str] = []
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        for _, link, _ in LINK.findall(read(page)):
            path = target(page, link)
            if path is None or path.startswith(f"{DOCS}/") or path in found:
                continue
            found.append(path)
            if path.endswith(".md"):
                waiting.append(site_path(path))
    return sorted(found)


def with_site_links(markdown: str, page: str) -> str:
    """A page's text with its links to the repository's files turned into links within the site."""

    def moved(match: re.Match[str]) -> str:
        path = target(page, match[2])
        if path is None:
            return match[0]
        link = relpath(site_path(path), PurePosixPath(page).parent)
        return f"{match[1]}{link}{match[3] or ''}"

    return LINK.sub(moved, markdown)


def on_files(files: Any, *, config: Any) -> Any:
    """mkdocs: add the linked files of the repository to the site."""
    from mkdocs.structure.files import File  # tests of the links do without mkdocs

    def read(page: str) -> str:
        return (ROOT / repository_path(page)).read_text(encoding="utf-8")

    pages = [file.src_uri for file in files.documentation_pages()]
    for path in linked(pages, read):
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """mkdocs: turn the links of a page."""
    if page.file.src_uri.startswith(f"{SITE_FOLDER}/"):
        page.meta["search"] = {"exclude": True}
    return with_site_links(markdown, page.file.src_uri)
