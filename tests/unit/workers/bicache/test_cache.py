from __future__ import annotations

import random

import pytest
import torch

from cache_service.core.types import PrefixKey
from tests.unit.workers.tiny import TINY
from workers.bicache.cache import PrefixCache, PrefixHandle
from workers.bicache.depth import DepthTable, ratio_percent
from workers.bicache.entry import Changes
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage

PAGE_BYTES = 2 * 4 * TINY.hidden_size * 4
TOKENS = tuple(range(8))
DEPTH = 2
ENTRY_PAGES = DEPTH * 2 + 1  # 8 tokens in pages of 4: two a layer, and one for the states


def key(name: str) -> PrefixKey:
    return PrefixKey(name.encode())


@pytest.fixture
def pool() -> PagePool:
    return PagePool(24)


def storage_of_24_pages() -> PageStorage:
    return PageStorage(TINY, pool_bytes=24 * PAGE_BYTES, page_tokens=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def cache(pool: PagePool) -> PrefixCache:
    return PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=3 * ENTRY_PAGES * PAGE_BYTES)


def admit(cache: PrefixCache, name: str) -> PrefixHandle:
    handle = cache.admit(key(name), TOKENS, {DEPTH})
    assert handle is not None
    cache.mark_built(handle.entry)
    return handle


def test_an_entry_lives_on_for_the_next_reader(cache: PrefixCache, pool: PagePool) -> None:
    admit(cache, "a").release()
    with cache.match(key("a"), TOKENS) as hit:  # type: ignore[union-attr]
        assert hit.entry.num_readers == 1
    assert pool.num_used == ENTRY_PAGES
    assert cache.size_bytes == ENTRY_PAGES * PAGE_BYTES
    cache.check_integrity()


def test_a_hit_needs_the_same_tokens(cache: PrefixCache) -> None:
    admit(cache, "a").release()
    assert cache.match(key("a"), TOKENS[::-1]) is None
    assert cache.match(key("b"), TOKENS) is None


def test_the_least_recently_used_idle_entry_makes_room(cache: PrefixCache) -> None:
    held = admit(cache, "held")
    for name in ("old", "new"):
        admit(cache, name).release()
    cache.match(key("old"), TOKENS).release()  # type: ignore[union-attr]
    admit(cache, "next").release()
    assert cache.match(key("new"), TOKENS) is None
    assert cache.match(key("old"), TOKENS) is not None
    assert cache.match(key("held"), TOKENS) is not None
    held.release()
    assert [key("new")] == cache.take_changes().gone


def test_prefixes_that_come_once_push_each_other_out_before_those_that_come_back(cache: PrefixCache) -> None:
    back = admit(cache, "back")
    for _ in range(2):
        cache.count_served(back.entry)
    back.release()
    for name in "abcd":
        admit(cache, name).release()
    assert cache.take_changes().gone == [key("a"), key("b")]


def test_prefixes_that_came_back_once_upon_a_time_are_not_kept_for_ever(cache: PrefixCache) -> None:
    """Two of three entries lie within the protected share of the budget."""
    for name in "abc":
        with admit(cache, name) as handle:
            for _ in range(2):
                cache.count_served(handle.entry)
    admit(cache, "d").release()
    assert cache.take_changes().gone == [key("a")]


def test_no_room_beside_entries_in_use(cache: PrefixCache) -> None:
    held = [admit(cache, name) for name in "abc"]
    assert cache.admit(key("d"), TOKENS, {DEPTH}) is None
    assert cache.num_entries == len(held)


def test_an_entry_is_widened_in_place_and_serves_what_it_served_until_the_rest_is_built(
    cache: PrefixCache, pool: PagePool
) -> None:
    entry = admit(cache, "a").entry
    slots = entry.table.slots
    assert cache.widen(entry, {1, 3})
    assert (entry.depths, entry.ready, entry.missing) == ({1, 2, 3}, {2}, {1, 3})
    assert torch.equal(entry.table.slots[:DEPTH], slots)
    assert list(cache.pending()) == [entry]
    assert pool.num_used == entry.num_pages == ENTRY_PAGES + 2 + 1 + 1  # K/V of layer 2, and the states at 1 and 3
    pages = [page for states in entry.table.state_pages.values() for page in states]
    assert len(set(pages)) == 3
    cache.mark_built(entry)
    assert entry.missing == set()
    cache.check_integrity()


def test_an_entry_is_not_widened_beyond_the_budget(cache: PrefixCache, pool: PagePool) -> None:
    held = [admit(cache, name) for name in "abc"]
    assert not cache.widen(held[0].entry, {4})
    assert held[0].entry.depths == {DEPTH}
    held[1].release()
    assert cache.widen(held[0].entry, {4})
    assert cache.take_changes().gone == [key("b")]
    cache.check_integrity()


def test_a_private_entry_lies_beside_the_budget_and_goes_with_its_reader(cache: PrefixCache, pool: PagePool) -> None:
    held = [admit(cache, name) for name in "abc"]
    cache.take_changes()
    private = cache.admit_private(key("d"), TOKENS, {DEPTH})
    assert private is not None
    assert list(cache.pending()) == [private.entry]
    assert cache.find(key("d")) is None
    assert cache.admit_private(key("d"), TOKENS, {4}) is None  # the pool is full, and nothing is idle
    cache.mark_built(private.entry)
    assert cache.widen(private.entry, {1})
    cache.check_integrity()
    private.release()
    assert not cache.take_changes()
    assert pool.num_used == len(held) * ENTRY_PAGES


def test_room_is_made_only_where_it_suffices(cache: PrefixCache, pool: PagePool) -> None:
    admit(cache, "a").release()
    assert not cache.make_room(25)
    assert cache.num_entries == 1
    assert cache.make_room(24)
    assert pool.num_free == 24
    assert cache.num_entries == 0


def test_nobody_waits_for_it_so_it_is_not_built(cache: PrefixCache, pool: PagePool) -> None:
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    assert [entry.key for entry in cache.pending()] == [key("a")]
    handle.release()
    assert list(cache.pending()) == []
    assert pool.num_used == 0
    assert cache.take_changes() == Changes(unwanted=[key("a")])


def test_a_dropped_entry_is_freed_by_its_last_reader(cache: PrefixCache, pool: PagePool) -> None:
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    cache.drop(handle.entry)
    assert cache.match(key("a"), TOKENS) is None
    assert pool.num_used == ENTRY_PAGES
    handle.release()
    assert pool.num_used == 0


def ended(changes: Changes) -> set[PrefixKey]:
    return {*changes.gone, *changes.unwanted}


def test_integrity_over_random_use(cache: PrefixCache, pool: PagePool) -> None:  # noqa: PLR0912
    """And what is told of entries, put together, is what there is."""
    draw, held = random.Random(1), list[PrefixHandle]()
    told = dict[PrefixKey, bool]()
    for _ in range(1200):
        name = draw.choice("abcdef")
        match draw.randrange(10):
            case 0 if held:
                held.pop(draw.randrange(len(held))).release()
            case 1 if held and not (entry := draw.choice(held).entry).built:
                cache.mark_built(entry)
            case 2 if held:
                cache.drop(draw.choice(held).entry)
            case 3:
                cache.make_room(draw.randint(1, 24))
            case 4:
                cache.retire(key(name))
            case 5:
                cache.reserve(key(name), TOKENS, {draw.randint(1, TINY.num_layers)})
            case 7 if held:
                cache.widen(draw.choice(held).entry, {draw.randint(1, TINY.num_layers)})
            case 6:
                while changes := cache.take_changes():
                    told = {name: is_built for name, is_built in told.items() if name not in ended(changes)}
                    told |= dict.fromkeys((entry.key for entry in changes.wanted), False)
                    told |= dict.fromkeys((entry.key for entry in changes.built), True)
                there = filter(None, map(cache.find, map(key, "abcdef")))
                assert told == {entry.key: entry.built for entry in there}
            case _:
                depth = draw.randint(1, TINY.num_layers)
                handle = cache.match(key(name), TOKENS) or cache.admit(key(name), TOKENS, {depth})
                handle = handle or cache.admit_private(key(name), TOKENS, {depth})
                held += [handle] if handle else []
        cache.check_integrity()
    for handle in held:
        handle.release()
    for name in "abcdef":
        cache.retire(key(name))
    assert pool.num_free == 24


def test_depth_is_that_of_the_largest_edge_reached() -> None:
    table = DepthTable({10: 2, 50: 5})
    assert [table.lookup(ratio) for ratio in (0, 9, 10, 49, 50, 100)] == [0, 0, 2, 2, 5, 5]
    assert (ratio_percent(1, 8), ratio_percent(3, 8)) == (12, 38)  # halves to even


@pytest.mark.parametrize(("prefix", "total", "percent"), [(23, 40, 57), (115, 200, 57), (109, 200, 55), (7, 8, 88)])
def test_a_ratio_is_divided_before_it_is_made_percent(prefix: int, total: int, percent: int) -> None:
    """As the published code does: its rounding of halves differs from that of 100 P / N."""
    assert ratio_percent(prefix, total) == percent


def test_an_entry_keeps_depths_around_its_first_ones() -> None:
    table = DepthTable({0: 1, 50: 11, 60: 13, 70: 14, 80: 16, 90: 17, 95: 32})
    assert table.near(16, 4) == {13, 14, 16, 17}
    assert table.near(32, 4) == {14, 16, 17, 32}
    assert table.near(1, 4) == {1, 11}
    assert table.near(9, 1) == {9}


def test_a_model_without_evidence_reuses_nothing() -> None:
    assert DepthTable.for_model(TINY, None).lookup(100) == 0
    assert DepthTable.for_model(TINY, {0: 9}).lookup(0) == TINY.num_layers


def test_an_awaited_entry_is_built_only_when_it_is_cleared(pool: PagePool) -> None:
    cache = PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=24 * PAGE_BYTES, awaits=True)
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    assert cache.take_changes().wanted == [handle.entry]
    assert list(cache.pending()) == []
    cache.allow_build(handle.entry)
    assert list(cache.pending()) == [handle.entry]


def test_a_pending_entry_is_not_replaced_under_those_who_wait_for_it(cache: PrefixCache) -> None:
    waiting = cache.admit(key("a"), TOKENS, {1})
    assert waiting is not None
    assert cache.admit(key("a"), TOKENS, {DEPTH}) is None
    assert list(cache.pending()) == [waiting.entry]


def test_an_entry_is_warmed_behind_all_that_somebody_waits_for(cache: PrefixCache) -> None:
    warmed = cache.reserve(key("a"), TOKENS, {DEPTH})
    assert warmed is not None
    assert (list(cache.pending()), list(cache.background())) == ([], [warmed])
    reader = cache.match(key("a"), TOKENS)
    assert reader is not None
    assert (list(cache.pending()), list(cache.background())) == ([warmed], [])
    reader.release()
    cache.mark_built(warmed)
    assert warmed.num_readers == 0
    cache.check_integrity()


def test_a_warmed_entry_whose_build_fails_leaves_nothing(cache: PrefixCache, pool: PagePool) -> None:
    warmed = cache.reserve(key("a"), TOKENS, {DEPTH})
    assert warmed is not None
    cache.drop(warmed)
    assert pool.num_used == 0
    cache.check_integrity()


def test_a_retired_entry_serves_its_readers_and_nobody_else(cache: PrefixCache, pool: PagePool) -> None:
    reader = admit(cache, "a")
    cache.retire(key("a"))
    assert cache.match(key("a"), TOKENS) is None
    assert cache.take_changes().gone == [key("a")]
    assert pool.num_used == ENTRY_PAGES
    reader.release()
    assert pool.num_used == 0
    cache.check_integrity()


def test_a_pending_entry_that_is_retired_serves_who_waits_for_it_and_goes(cache: PrefixCache, pool: PagePool) -> None:
    waiting = cache.admit(key("a"), TOKENS, {DEPTH})
    assert waiting is not None
    assert cache.retire(key("a")) is waiting.entry
    cache.mark_built(waiting.entry)
    assert cache.take_changes() == Changes(built=[waiting.entry])
    assert cache.take_changes() == Changes(gone=[key("a")])
    assert cache.match(key("a"), TOKENS) is None
    waiting.release()
    assert pool.num_used == 0
    cache.check_integrity()


def test_a_warmed_entry_that_is_retired_is_not_built(cache: PrefixCache, pool: PagePool) -> None:
    cache.reserve(key("a"), TOKENS, {DEPTH})
    cache.retire(key("a"))
    assert cache.take_changes() == Changes(unwanted=[key("a")])
    assert pool.num_used == 0
    cache.check_integrity()


def test_heat_is_news_each_time_that_it_doubles(cache: PrefixCache) -> None:
    entry = admit(cache, "a").entry
    cache.take_changes()
    told = []
    for _ in range(9):
        cache.count_served(entry)
        told += [entry.num_served] if cache.take_changes() else []
    assert told == [1, 2, 4, 8]


def test_an_entry_that_came_and_went_between_two_looks_has_only_gone(pool: PagePool) -> None:
    """Its heat is news, and then it is retired and another one is made."""
    cache = PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=24 * PAGE_BYTES, awaits=True)
    first = cache.admit(key("a"), TOKENS, {1})
    assert first is not None
    cache.mark_built(first.entry)
    cache.take_changes()
    cache.count_served(first.entry)
    cache.retire(key("a"))
    second = cache.admit(key("a"), TOKENS, {DEPTH})
    assert second is not None
    assert cache.take_changes() == Changes(gone=[key("a")], wanted=[second.entry])
    second.release()
    assert cache.take_changes() == Changes(unwanted=[key("a")])
