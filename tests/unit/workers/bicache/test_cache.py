from __future__ import annotations

import random

import pytest
import torch

from cache_service.core.types import PrefixKey
from tests.unit.workers.tiny import TINY
from workers.bicache.cache import PrefixCache
from workers.bicache.depth import DepthTable, Finding, ratio_percent
from workers.bicache.entry import Changes, EntryState, PrefixHandle
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


def test_an_entry_outlives_its_reader_for_the_next_one(cache: PrefixCache, pool: PagePool) -> None:
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


def test_entries_that_served_one_request_are_evicted_before_those_that_served_more(cache: PrefixCache) -> None:
    back = admit(cache, "back")
    for _ in range(2):
        cache.count_served(back.entry)
    back.release()
    for name in "abcd":
        admit(cache, name).release()
    assert cache.take_changes().gone == [key("a"), key("b")]


def test_entries_that_served_more_requests_are_protected_only_up_to_a_share_of_the_budget(cache: PrefixCache) -> None:
    """Two of three entries lie within the protected share of the budget."""
    for name in "abc":
        with admit(cache, name) as handle:
            for _ in range(2):
                cache.count_served(handle.entry)
    admit(cache, "d").release()
    assert cache.take_changes().gone == [key("a")]


def test_entries_in_use_are_not_evicted_for_new_ones(cache: PrefixCache) -> None:
    held = [admit(cache, name) for name in "abc"]
    assert cache.admit(key("d"), TOKENS, {DEPTH}) is None
    assert cache.num_entries == len(held)


def test_a_widened_entry_serves_its_old_depths_until_the_new_ones_are_built(cache: PrefixCache, pool: PagePool) -> None:
    entry = admit(cache, "a").entry
    slots = entry.table.slots
    assert cache.widen(entry, {1, 3})
    assert (entry.depths, entry.ready, entry.missing) == ({1, 2, 3}, {2}, {1, 3})
    assert torch.equal(entry.table.slots[:DEPTH], slots)
    assert list(cache.due_entries()) == [entry]
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


def test_a_private_entry_takes_pages_beside_the_budget_and_goes_with_its_reader(
    cache: PrefixCache, pool: PagePool
) -> None:
    held = [admit(cache, name) for name in "abc"]
    cache.take_changes()
    private = cache.admit_private(key("d"), TOKENS, {DEPTH})
    assert private is not None
    assert list(cache.due_entries()) == [private.entry]
    assert cache.find(key("d")) is None
    assert cache.admit_private(key("d"), TOKENS, {4}) is None  # the pool is full, and nothing is idle
    cache.mark_built(private.entry)
    assert cache.widen(private.entry, {1})
    cache.check_integrity()
    private.release()
    assert not cache.take_changes()
    assert pool.num_used == len(held) * ENTRY_PAGES


def test_nothing_is_evicted_where_it_would_not_suffice(cache: PrefixCache, pool: PagePool) -> None:
    admit(cache, "a").release()
    assert not cache.make_room(25)
    assert cache.num_entries == 1
    assert cache.make_room(24)
    assert pool.num_free == 24
    assert cache.num_entries == 0


def test_a_pending_entry_without_readers_is_not_built(cache: PrefixCache, pool: PagePool) -> None:
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    assert [entry.key for entry in cache.due_entries()] == [key("a")]
    handle.release()
    assert list(cache.due_entries()) == []
    assert pool.num_used == 0
    assert cache.take_changes() == Changes(abandoned=[key("a")])


def test_a_dropped_entry_is_freed_by_its_last_reader(cache: PrefixCache, pool: PagePool) -> None:
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    cache.drop(handle.entry)
    assert cache.match(key("a"), TOKENS) is None
    assert pool.num_used == ENTRY_PAGES
    handle.release()
    assert pool.num_used == 0


def test_an_entry_goes_from_awaited_through_pending_live_and_retiring_to_gone(pool: PagePool) -> None:
    cache = PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=24 * PAGE_BYTES, awaits=True)
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    entry, seen = handle.entry, [handle.entry.state]
    for act in (
        lambda: cache.allow_build(entry),
        lambda: cache.mark_built(entry),
        lambda: cache.retire(entry.key),
        handle.release,
    ):
        act()
        seen.append(entry.state)
        cache.check_integrity()
    assert seen == list(EntryState)


def test_a_copy_makes_an_awaited_entry_live_and_answers_its_probes_as_far_as_it_reaches(pool: PagePool) -> None:
    cache = PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=24 * PAGE_BYTES, awaits=True)
    handle = cache.admit(key("a"), TOKENS, {1, DEPTH})
    assert handle is not None
    for bucket in (50, 60, 70):
        cache.request_probe(handle.entry, bucket, DEPTH)
    found = {50: Finding(DEPTH + 1, ends_there=False), 60: Finding(1, ends_there=False)}
    cache.mark_copied(handle.entry, {DEPTH}, found)
    assert (handle.entry.state, handle.entry.is_copy) == (EntryState.LIVE, True)
    assert (handle.entry.missing, handle.entry.to_probe) == ({1}, {60: DEPTH, 70: DEPTH})
    cache.check_integrity()


def test_a_probe_that_ends_early_lowers_the_entrys_safe_depth(cache: PrefixCache) -> None:
    entry = admit(cache, "a").entry
    cache.request_probe(entry, 50, DEPTH)
    cache.request_probe(entry, 50, 1)
    assert entry.to_probe == {50: DEPTH}
    cache.record_finding(entry, 50, Finding(DEPTH, ends_there=True))
    assert (entry.drifted, entry.safe_depth, entry.to_probe) == ({50: DEPTH - 1}, DEPTH - 1, {})


def test_a_dropped_entry_is_neither_widened_nor_built(cache: PrefixCache) -> None:
    entry = admit(cache, "a").entry
    assert cache.widen(entry, {1})
    cache.drop(entry)
    assert (entry.state, list(cache.due_entries())) == (EntryState.GONE, [])
    assert not cache.widen(entry, {3})
    cache.check_integrity()


def test_a_retiring_entry_is_still_widened_and_probed_for_its_readers(cache: PrefixCache) -> None:
    entry = admit(cache, "a").entry
    cache.retire(entry.key)
    assert cache.widen(entry, {1})
    assert list(cache.due_entries()) == [entry]
    cache.mark_built(entry)
    assert (entry.state, entry.missing) == (EntryState.RETIRING, set())
    cache.request_probe(entry, 50, 1)
    assert list(cache.due_entries()) == [entry]
    cache.check_integrity()


def ended(changes: Changes) -> set[PrefixKey]:
    return {*changes.gone, *changes.abandoned}


def test_integrity_over_random_use(cache: PrefixCache, pool: PagePool) -> None:  # noqa: PLR0912
    """The changes that are taken add up to the entries that can be found."""
    draw, held = random.Random(1), list[PrefixHandle]()
    reported = dict[PrefixKey, bool]()
    for _ in range(1200):
        name = draw.choice("abcdef")
        match draw.randrange(10):
            case 0 if held:
                held.pop(draw.randrange(len(held))).release()
            case 1 if held and (entry := draw.choice(held).entry).is_pending:
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
                    reported = {name: is_built for name, is_built in reported.items() if name not in ended(changes)}
                    reported |= dict.fromkeys((entry.key for entry in changes.pending), False)
                    reported |= dict.fromkeys((entry.key for entry in changes.live), True)
                there = filter(None, map(cache.find, map(key, "abcdef")))
                assert reported == {entry.key: entry.is_live for entry in there}
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


def test_the_depth_table_goes_by_the_largest_edge_that_a_ratio_reaches() -> None:
    table = DepthTable({10: 2, 50: 5})
    assert [table.lookup(ratio) for ratio in (0, 9, 10, 49, 50, 100)] == [0, 0, 2, 2, 5, 5]
    assert (ratio_percent(1, 8), ratio_percent(3, 8)) == (12, 38)  # halves to even


@pytest.mark.parametrize(("prefix", "total", "percent"), [(23, 40, 57), (115, 200, 57), (109, 200, 55), (7, 8, 88)])
def test_a_ratio_is_divided_before_it_is_made_percent(prefix: int, total: int, percent: int) -> None:
    """As the published code does: its rounding of halves differs from that of 100 P / N."""
    assert ratio_percent(prefix, total) == percent


def test_an_entry_keeps_depths_around_its_first_ones() -> None:
    table = DepthTable({0: 1, 50: 11, 60: 13, 70: 14, 80: 16, 90: 17, 95: 32})
    assert table.depths_near(16, 4) == {13, 14, 16, 17}
    assert table.depths_near(32, 4) == {14, 16, 17, 32}
    assert table.depths_near(1, 4) == {1, 11}
    assert table.depths_near(9, 1) == {9}


def test_a_model_without_evidence_reuses_nothing() -> None:
    assert DepthTable.for_model(TINY, None).lookup(100) == 0
    assert DepthTable.for_model(TINY, {0: 9}).lookup(0) == TINY.num_layers


def test_an_awaited_entry_is_built_only_once_that_is_allowed(pool: PagePool) -> None:
    cache = PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=24 * PAGE_BYTES, awaits=True)
    handle = cache.admit(key("a"), TOKENS, {DEPTH})
    assert handle is not None
    assert cache.take_changes().pending == [handle.entry]
    assert list(cache.due_entries()) == []
    cache.allow_build(handle.entry)
    assert list(cache.due_entries()) == [handle.entry]


def test_a_pending_entry_is_not_replaced_while_requests_wait_for_it(cache: PrefixCache) -> None:
    waiting = cache.admit(key("a"), TOKENS, {1})
    assert waiting is not None
    assert cache.admit(key("a"), TOKENS, {DEPTH}) is None
    assert list(cache.due_entries()) == [waiting.entry]


def test_a_reserved_entry_is_built_after_those_that_requests_wait_for(cache: PrefixCache) -> None:
    reserved = cache.reserve(key("a"), TOKENS, {DEPTH})
    assert reserved is not None
    assert (list(cache.due_entries()), list(cache.background_entries())) == ([], [reserved])
    reader = cache.match(key("a"), TOKENS)
    assert reader is not None
    assert (list(cache.due_entries()), list(cache.background_entries())) == ([reserved], [])
    reader.release()
    cache.mark_built(reserved)
    assert reserved.num_readers == 0
    cache.check_integrity()


def test_a_reserved_entry_whose_build_fails_frees_its_pages(cache: PrefixCache, pool: PagePool) -> None:
    reserved = cache.reserve(key("a"), TOKENS, {DEPTH})
    assert reserved is not None
    cache.drop(reserved)
    assert pool.num_used == 0
    cache.check_integrity()


def test_a_retired_entry_serves_its_readers_only(cache: PrefixCache, pool: PagePool) -> None:
    reader = admit(cache, "a")
    cache.retire(key("a"))
    assert cache.match(key("a"), TOKENS) is None
    assert cache.take_changes().gone == [key("a")]
    assert pool.num_used == ENTRY_PAGES
    reader.release()
    assert pool.num_used == 0
    cache.check_integrity()


def test_a_retired_pending_entry_serves_the_requests_that_wait_for_it_and_leaves(
    cache: PrefixCache, pool: PagePool
) -> None:
    waiting = cache.admit(key("a"), TOKENS, {DEPTH})
    assert waiting is not None
    assert cache.retire(key("a")) is waiting.entry
    cache.mark_built(waiting.entry)
    assert cache.take_changes() == Changes(live=[waiting.entry])
    assert cache.take_changes() == Changes(gone=[key("a")])
    assert cache.match(key("a"), TOKENS) is None
    waiting.release()
    assert pool.num_used == 0
    cache.check_integrity()


def test_a_retired_reserved_entry_is_not_built(cache: PrefixCache, pool: PagePool) -> None:
    cache.reserve(key("a"), TOKENS, {DEPTH})
    cache.retire(key("a"))
    assert cache.take_changes() == Changes(abandoned=[key("a")])
    assert pool.num_used == 0
    cache.check_integrity()


def test_an_entrys_heat_is_reported_each_time_that_it_doubles(cache: PrefixCache) -> None:
    entry = admit(cache, "a").entry
    cache.take_changes()
    reported = []
    for _ in range(9):
        cache.count_served(entry)
        reported += [entry.num_served] if cache.take_changes() else []
    assert reported == [1, 2, 4, 8]


def test_an_entry_that_changed_and_left_between_two_calls_is_only_reported_as_gone(pool: PagePool) -> None:
    """Its heat doubles, then it is retired and another one is admitted under its key."""
    cache = PrefixCache(pool, storage_of_24_pages(), TINY, budget_bytes=24 * PAGE_BYTES, awaits=True)
    first = cache.admit(key("a"), TOKENS, {1})
    assert first is not None
    cache.mark_built(first.entry)
    cache.take_changes()
    cache.count_served(first.entry)
    cache.retire(key("a"))
    second = cache.admit(key("a"), TOKENS, {DEPTH})
    assert second is not None
    assert cache.take_changes() == Changes(gone=[key("a")], pending=[second.entry])
    second.release()
    assert cache.take_changes() == Changes(abandoned=[key("a")])
