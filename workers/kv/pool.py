"""Allocate pages by id. Their bytes belong to `kv.storage`."""

from __future__ import annotations

from types import TracebackType
from typing import NewType

from workers.errors import WorkerError

PageId = NewType("PageId", int)


class OutOfPagesError(WorkerError):
    """The pool has fewer free pages than were asked for."""


class Pages:
    """Owns some pages until `release` or the end of a `with`. Releasing twice changes nothing."""

    def __init__(self, pool: PagePool, ids: tuple[PageId, ...]) -> None:
        self._pool = pool
        self.ids = ids
        self._owned = True

    def __len__(self) -> int:
        return len(self.ids)

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        if self._owned:
            self._owned = False
            self._pool.take_back(self)


class PagePool:
    """Allocates from a fixed number of equal pages, in any order."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = [PageId(index) for index in reversed(range(num_pages))]
        self._owners: set[Pages] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_pages - len(self._free)

    def allocate(self, num_pages: int) -> Pages:
        """Return ownership of `num_pages` pages. Raises OutOfPagesError, and allocates none, if too few are free."""
        if num_pages > len(self._free):
            raise OutOfPagesError(
                f"{num_pages} pages are needed, and {len(self._free)} of {self.num_pages} are free; raise kv.pool_bytes"
            )
        keep = len(self._free) - num_pages
        taken = tuple(reversed(self._free[keep:]))
        del self._free[keep:]
        pages = Pages(self, taken)
        self._owners.add(pages)
        return pages

    def take_back(self, pages: Pages) -> None:
        """Free pages. `Pages.release` calls it, once for each object."""
        self._owners.remove(pages)
        self._free.extend(reversed(pages.ids))

    def check_integrity(self) -> None:
        """Raise AssertionError unless every page is free or has exactly one owner."""
        held = [page for pages in self._owners for page in pages.ids] + self._free
        assert len(held) == len(set(held)) == self.num_pages, f"{self!r}: a page is lost, or owned twice"

    def __repr__(self) -> str:
        return f"<PagePool [{self.num_used} used, {self.num_free} free | {len(self._owners)} owners]>"
