from __future__ import annotations

import random

import pytest

from workers.kv.pool import OutOfPagesError, PagePool, Pages


def test_pages_have_one_owner_at_a_time() -> None:
    pool = PagePool(8)
    with pool.allocate(5) as first:
        assert (pool.num_used, pool.num_free) == (5, 3)
        with pytest.raises(OutOfPagesError, match=r"kv\.pool_bytes"):
            pool.allocate(4)
        second = pool.allocate(3)
        assert not set(first.ids) & set(second.ids)
    second.release()
    second.release()
    assert pool.num_free == 8
    pool.check_integrity()


def test_integrity_holds_over_random_use_and_finds_a_lost_page() -> None:
    draw, pool, held = random.Random(0), PagePool(32), list[Pages]()
    for _ in range(500):
        if held and draw.random() < 0.5:
            held.pop(draw.randrange(len(held))).release()
        elif pool.num_free:
            held.append(pool.allocate(draw.randint(0, pool.num_free)))
        pool.check_integrity()
    pool = PagePool(4)
    pages = pool.allocate(2)
    pages.ids = pages.ids[:1]
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity()
