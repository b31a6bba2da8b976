"""Every link between the project's pages leads somewhere, and every path that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
PATH = re.compile(r"`((?:protos|cache_service|workers|cluster|deploy|docs|tests|tools|benchmarks)/[\w./-]*)`")
"""A path of the repository, set as code."""
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, fragment in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if fragment:
            assert fragment in anchors(target), f"{path}#{fragment}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_is_named_exists(page: Path) -> None:
    paths = set(PATH.findall(page.read_text()))
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_the_checklists_name_paths() -> None:
    assert len(set(PATH.findall((REPOSITORY / "docs" / "extending.md").read_text()))) > 30


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / path).resolve()
        for page in PAGES
        for path, _ in LINK.findall(page.read_text())
        if (page.parent / path).resolve() != page.resolve()
    }
    alone = [page.name for page in PAGES if page.resolve() not in linked and page.name != "README.md"]
    assert alone == []
