"""Every link between the project's pages leads somewhere, and docs/extending.md names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
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


def test_every_path_in_the_checklists_exists() -> None:
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    paths = {path for path in re.findall(r"`([\w./]+)`", text) if "/" in path}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / path).resolve()
        for page in PAGES
        for path, _ in LINK.findall(page.read_text())
        if (page.parent / path).resolve() != page.resolve()
    }
    alone = [page.name for page in PAGES if page.resolve() not in linked and page.name != "README.md"]
    assert alone == []
