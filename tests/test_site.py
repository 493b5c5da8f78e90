"""The guide's site: every page is in the navigation, and links leave docs/ only for what is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.repository_files import linked, on_page_markdown, site_path, target, with_site_links

ROOT = Path(__file__).parents[1]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without the Python objects in it."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def navigated(entry):
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in navigated(part)]


def test_every_page_is_in_the_navigation():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    named = navigated(settings["nav"])
    assert len(named) == len(set(named))
    assert set(named) == pages, "mkdocs.yml names each page of docs/ once"


def test_a_link_out_of_docs_leads_into_the_site():
    text = "[a](../README.md#sweeps) and [b](scale.md#x), [c](https://a.b/README.md), [d](#here)"
    assert with_site_links(text, "scale.md") == text.replace("../README.md", "repository/README.md")
    assert "(../repository/setup.py)" in with_site_links("[s](../../setup.py)", "api/training.md")


def test_a_linked_file_links_on():
    """From the repository's own Markdown: to a page of the guide, and to other files."""
    text = "[guide](docs/scale.md#several-hook-points) [licence](LICENSE) ![a](docs/nothing.png)"
    moved = with_site_links(text, "repository/README.md")
    assert moved == text.replace("docs/scale.md", "../scale.md")
    assert site_path("docs/api/x.md") == "api/x.md"


def test_links_to_no_file_are_left_for_mkdocs_to_refuse():
    for link in ("../nothing.md", "../tests", "../../etc/passwd"):
        assert target("scale.md", link) is None
        assert with_site_links(f"[x]({link})", "scale.md") == f"[x]({link})"


def test_the_links_of_linked_files_are_followed():
    texts = {
        "a.md": "[x](../README.md) [y](scale.md)",
        "repository/README.md": "[s](setup.py) [again](README.md) [page](docs/scale.md)",
    }
    assert linked(["a.md"], texts.__getitem__) == ["README.md", "setup.py"]


def test_only_the_guide_is_searched():
    class Page:
        def __init__(self, path):
            self.meta, self.file = {}, type("File", (), {"src_uri": path})

    page: Any = Page("scale.md")
    on_page_markdown("", page=page)
    assert not page.meta
    page = Page("repository/README.md")
    on_page_markdown("", page=page, config=None, files=None)
    assert page.meta == {"search": {"exclude": True}}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    assert (site / "repository/experiments/RESULTS.html").exists()
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert tags
        assert not [tag for tag in tags if re.search(r"(?:src|href)=\W?https?:", tag)]


@pytest.mark.slow
def test_the_python_interface_is_documented(site):
    text = (site / "api/trainers.html").read_text(encoding="utf-8")
    for name in ("VariationalTopKAutoEncoder.encode", "VAEaseTrainer.update", "beta"):
        assert name in text
