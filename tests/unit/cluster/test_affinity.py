from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cache_service.core.types import PrefixKey, ReplicaId
from cluster.affinity import Demand, RouterWeights, rank
from cluster.ledger import WorkLedger
from workers.api import PrefixCandidate
from workers.bicache.cut import choose_cut

A, B, C = ReplicaId("a"), ReplicaId("b"), ReplicaId("c")
REPLICAS = (A, B, C)
SHEET, TALK = PrefixKey(b"sheet"), PrefixKey(b"talk")
EVEN = RouterWeights()


def demand(*prefixes: tuple[PrefixKey, int], prompt_tokens: int = 400, request_id: str = "r") -> Demand:
    candidates = tuple(PrefixCandidate(num_tokens, key) for key, num_tokens in prefixes)
    return Demand(request_id, prompt_tokens, canvas_tokens=32, prefixes=candidates, cut=choose_cut(candidates, 0.5))


def test_an_idle_holder_is_cheapest_and_only_the_prefix_at_the_cut_counts() -> None:
    """An entry of the longer prefix would serve another request."""
    asked = demand((SHEET, 200), (TALK, 300))
    choices = rank(asked, REPLICAS, {SHEET: frozenset({A}), TALK: frozenset({B})}, {}, EVEN)

    assert [(choice.replica, choice.cost, choice.cached_tokens) for choice in choices][:1] == [(A, 200.0, 200)]
    assert {(choice.replica, choice.cost, choice.cached_tokens) for choice in choices[1:]} == {
        (B, 400.0, 0),
        (C, 400.0, 0),
    }


def test_a_holder_that_is_busier_than_its_entry_saves_is_passed_over() -> None:
    asked, holders = demand((SHEET, 300)), {SHEET: frozenset({A})}

    assert rank(asked, (A, B), holders, {A: 299}, EVEN)[0].replica == A
    assert rank(asked, (A, B), holders, {A: 301}, EVEN)[0].replica == B


def test_weights_say_what_a_token_costs() -> None:
    asked, holders = demand((SHEET, 300)), {SHEET: frozenset({A})}

    assert rank(asked, (A, B), holders, {A: 301}, RouterWeights(uncached=2.0))[0].replica == A
    assert rank(asked, (A, B), holders, {A: 299}, RouterWeights(queued=2.0))[0].replica == B


def test_before_any_entry_is_known_a_prefix_sticks_and_prefixes_spread() -> None:
    def first(key: PrefixKey, request_id: str) -> ReplicaId:
        return rank(demand((key, 100), request_id=request_id), REPLICAS, {}, {}, EVEN)[0].replica

    keys = [PrefixKey(f"sheet {n}".encode()) for n in range(300)]

    assert all(first(key, "one") == first(key, "two") for key in keys)
    shares = Counter(first(key, "one") for key in keys)
    assert min(shares[replica] for replica in REPLICAS) > 70


def test_a_replica_that_leaves_moves_only_its_own_prefixes() -> None:
    def first(key: PrefixKey, replicas: tuple[ReplicaId, ...]) -> ReplicaId:
        return rank(demand((key, 100)), replicas, {}, {}, EVEN)[0].replica

    keys = [PrefixKey(f"sheet {n}".encode()) for n in range(100)]

    stayed = [key for key in keys if first(key, REPLICAS) != C]
    assert all(first(key, (A, B)) == first(key, REPLICAS) for key in stayed)


def test_requests_without_a_prefix_spread_too() -> None:
    firsts = Counter(rank(demand(request_id=f"r{n}"), REPLICAS, {}, {}, EVEN)[0].replica for n in range(300))

    assert min(firsts[replica] for replica in REPLICAS) > 70


@given(st.permutations(REPLICAS), st.dictionaries(st.sampled_from(REPLICAS), st.integers(0, 1000)))
def test_the_order_of_candidates_does_not_matter(order: list[ReplicaId], queued: dict[ReplicaId, int]) -> None:
    holders = {SHEET: frozenset({B})}

    assert rank(demand((SHEET, 100)), order, holders, queued, EVEN) == rank(
        demand((SHEET, 100)), REPLICAS, holders, queued, EVEN
    )


def test_one_hot_prefix_never_goes_to_one_replica_alone() -> None:
    """While requests queue on the holder, the others get their share, and no replica has all the work."""
    ledger, holders = WorkLedger(), {SHEET: frozenset({A})}
    for n in range(60):
        asked = demand((SHEET, 300), request_id=f"r{n}")
        queued = {replica: ledger.sent_tokens(replica) for replica in REPLICAS}
        best = rank(asked, REPLICAS, holders, queued, EVEN)[0]
        ledger.open(asked.request_id, best.replica, asked.work(best.cached_tokens), expires_at=60.0)

    work = [ledger.sent_tokens(replica) for replica in REPLICAS]
    assert max(work) - min(work) <= 432
