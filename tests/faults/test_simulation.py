"""A million operations over a faulty network break no invariant; with a bug planted in any of them, they do."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from cache_service.testing import Violation
from tests.faults import plants
from tests.faults.plants import Plant
from tests.faults.simulation import Simulation


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.system) for seed in range(1, 4))])
def test_no_invariant_breaks_under_faults(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run(num_operations=250_000)
    checker = simulation.checker
    assert checker.entries.num_found > 50_000
    assert checker.entries.num_limits > 10_000
    assert checker.contexts.num_contents > 5_000
    assert checker.contexts.lifetimes.num_renewals > 1_000
    assert checker.contexts.tenants.num_refused > 100
    assert checker.builds.num_grants > 5_000
    assert checker.builds.num_fenced > 100
    for watcher in simulation.watchers:
        assert watcher.num_gaps > 50
        assert watcher.checker.num_events > 10_000


def test_a_run_is_repeated_by_its_seed() -> None:
    one, two = Simulation(5), Simulation(5)
    one.run(5_000)
    two.run(5_000)
    assert one.store.state.snapshot() == two.store.state.snapshot()


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (plants.reads_that_forget_epochs, "stale read"),
        (plants.edits_of_any_epoch, "two edits made epoch|stale read"),
        (plants.edits_that_every_seventh_epoch_drops, "the edits made|has the keys"),
        (plants.holes_that_stay_where_they_were, "the edits made"),
        (plants.edits_that_act_at_every_try, "acted twice|no client has sent the edit"),
        (plants.creations_that_act_at_every_try, "made two contexts"),
        (plants.lists_without_the_newest_context, "is not listed"),
        (plants.keys_without_salt, "share"),
        (plants.writes_under_any_token, "was accepted though"),
        (plants.builds_for_every_caller, "two builds at once"),
        (plants.leases_that_lapse_early, "two builds at once|is not found"),
        (plants.leases_that_never_lapse, "dead beyond its TTL"),
        (plants.registrations_that_keep_builds, "outlived its registration"),
        (plants.releases_that_do_nothing, "said to be under way"),
        (plants.lookups_that_find_nothing, "is not found"),
        (plants.lookups_that_find_one_holder, "is not found"),
        (plants.announcements_that_get_lost, "is not found"),
        (plants.withdrawals_that_do_nothing, "its withdrawal had been acknowledged"),
        (plants.limits_that_the_last_report_replaces, "yet the limit is"),
        (plants.limits_that_rise, "yet the limit is"),
        (plants.limits_that_end_with_any_placement, "yet the limit is"),
        (plants.contexts_without_bounds, "is beyond a quota"),
        (plants.contexts_that_count_for_no_tenant, "counts for"),
        (plants.lifetimes_that_never_end, "though all that had ended"),
        (plants.lifetimes_that_end_early, "is unknown, though|is not listed"),
        (plants.lifetimes_that_edits_leave, "did not begin its lifetime again"),
        (plants.renewals_that_get_lost, "is unknown, though|is not listed"),
    ],
)
def test_clients_find_a_planted_bug(monkeypatch: pytest.MonkeyPatch, plant: Plant, found: str) -> None:
    plant(monkeypatch)
    simulation = Simulation(seed=0, num_watchers=0)
    with pytest.raises(Violation, match=found):
        simulation.run(num_operations=50_000)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (plants.watchers_that_skip_gaps, "came after revision"),
        (plants.a_log_that_forgets_in_silence, "came after revision"),
        (plants.edits_of_any_epoch, "came after epoch"),
        (plants.edits_that_every_seventh_epoch_drops, "contexts differ|share|has the keys"),
        (plants.creations_that_act_at_every_try, "made two contexts"),
        (plants.builds_for_every_caller, "can't follow"),
        (plants.registrations_that_keep_builds, "can't follow"),
        (plants.stale_entries_that_stay, "should have gone"),
        (plants.deletions_that_leave_builds, "should have gone"),
        (plants.limits_that_the_last_report_replaces, "does not lower"),
        (plants.limits_that_rise, "does not lower"),
        (plants.limits_that_never_end, "limits differ|has outlived the last placement"),
        (plants.limits_that_end_with_any_placement, "limits differ|does not lower"),
        (plants.withdrawals_that_watchers_miss, "differ|no members|indexes"),
        (plants.contexts_without_bounds, "is beyond a quota"),
        (plants.edits_without_bounds, "is beyond a quota"),
        (plants.usage_that_never_falls, "was counted"),
        (plants.renewals_that_get_lost, "contexts differ|can't follow"),
    ],
)
def test_watchers_find_a_planted_bug(monkeypatch: pytest.MonkeyPatch, plant: Plant, found: str) -> None:
    plant(monkeypatch)
    simulation = Simulation(seed=0)
    for client_check in ("contexts", "entries", "builds"):  # so that only watchers can find it
        monkeypatch.setattr(simulation.checker, client_check, Mock())
    with pytest.raises((Violation, AssertionError), match=found):
        simulation.run(num_operations=50_000)
