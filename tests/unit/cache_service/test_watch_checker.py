"""The watch checker follows what a service sends, and refuses events that can't follow one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cache_service.core.events import Announced, Built, Edited, Event, Granted, Joined, Left, Limited, Withdrawn
from cache_service.core.lifetimes import Renewal
from cache_service.core.quotas import ContextQuotas
from cache_service.core.state import EXPIRY, State
from cache_service.core.types import Context, DepthLimit, Edit, EditId, Lease, Revision
from cache_service.testing import Violation, WatchChecker, require_same_view
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


class Service:
    """Holds a service's state with one member, and a checker that takes every event."""

    def __init__(self) -> None:
        self.state, self.checker = State(), WatchChecker(ContextQuotas(max_per_tenant=2, max_tokens_per_tenant=5))
        self.checker.take(self.state.snapshot())
        self.append(self.state.register(ANNA, 9.0, self.next))
        self.append(self.state.contexts.create("m", "s", [1, 2], [1], EditId("c"), BORIS, self.next))

    @property
    def next(self) -> Revision:
        return self.state.next_revision

    @property
    def lease(self) -> Lease:
        return self.state.directory.lease_of(ANNA)

    @property
    def context(self) -> Context:
        (context,) = self.state.contexts.all()
        return context

    def append(self, events: Sequence[Event]) -> None:
        for event in events:
            self.state.apply(event)
            self.checker.take(event)

    def edit(self) -> Sequence[Event]:
        """Return the events of one more edit."""
        epoch = self.context.epoch
        return self.state.edit(
            self.context.id, epoch, [Edit(0, 1, (epoch + 5,))], EditId(f"e{epoch}"), BORIS, self.next
        )

    def announce(self) -> None:
        entry = placed("", ANNA, key=self.context.key, epoch=self.context.epoch, context=self.context.id)
        self.append(self.state.announce(self.lease, [entry, placed("a", ANNA)], self.next))

    def acquire(self) -> None:
        context = self.context
        self.append(self.state.acquire(self.lease, context.key, context.epoch, context.id, 2.0, self.next))

    def report(self, depth: int) -> Limited:
        return Limited(self.next, ANNA, DepthLimit(key("a"), 60, depth, 1))


def test_the_checker_knows_what_the_service_knows() -> None:
    service = Service()
    service.announce()
    service.append([service.report(3), replace(service.report(2), revision=Revision(service.next + 1))])
    service.append(service.state.directory.drain(service.lease, service.next))
    for _ in range(6):
        service.acquire()
        service.append(service.edit())
    require_same_view(service.checker.view(), service.state.snapshot())
    service.append(service.state.directory.withdraw(service.lease, [key("a")], service.next))
    service.append(service.state.contexts.renew(service.context.id, Renewal(0.0, 9.0), BORIS, service.next))
    service.append(service.edit())
    require_same_view(service.checker.view(), service.state.snapshot())
    service.append(service.state.delete(service.context.id, BORIS, service.next))
    service.append(service.state.leave(service.lease, service.next))
    service.checker.require_nothing_overdue()
    require_same_view(service.checker.view(), service.state.snapshot())


def a_gap(service: Service) -> Sequence[Event]:
    return [Left(Revision(service.next + 1), ANNA)]


def a_member_that_joins_twice(service: Service) -> Sequence[Event]:
    return [Joined(service.next, replace(service.lease, id=type(service.lease.id)(service.next)))]


def a_member_that_leaves_with_its_build(service: Service) -> Sequence[Event]:
    service.acquire()
    return [Left(service.next, ANNA)]


def an_entry_of_no_member(service: Service) -> Sequence[Event]:
    return [Announced(service.next, placed("a", BORIS))]


def an_entry_of_an_old_epoch(service: Service) -> Sequence[Event]:
    entry = placed("", ANNA, key=service.context.key, context=service.context.id)
    service.append(service.edit())
    return [Announced(service.next, entry)]


def a_withdrawal_of_what_is_not_held(service: Service) -> Sequence[Event]:
    return [Withdrawn(service.next, placed("a", ANNA))]


def an_epoch_that_is_skipped(service: Service) -> Sequence[Event]:
    (event, *_) = service.edit()
    assert isinstance(event, Edited)
    return [replace(event, version=replace(event.version, epoch=type(event.version.epoch)(2)))]


def a_build_that_outlives_its_epoch(service: Service) -> Sequence[Event]:
    service.acquire()
    (edited, *_) = service.edit()
    return [edited, Announced(Revision(service.next + 1), placed("a", ANNA))]


def an_entry_that_outlives_its_context(service: Service) -> Sequence[Event]:
    service.announce()
    (deleted, *_) = service.state.delete(service.context.id, BORIS, service.next)
    return [deleted, Left(Revision(service.next + 1), ANNA)]


def a_build_that_is_granted_twice(service: Service) -> Sequence[Event]:
    service.acquire()
    (build,) = service.state.builds.all()
    return [Granted(service.next, replace(build, token=type(build.token)(service.next)))]


def a_build_that_ends_without_its_entry(service: Service) -> Sequence[Event]:
    service.acquire()
    (build,) = service.state.builds.all()
    return [Built(service.next, build)]


def a_limit_without_an_entry(service: Service) -> Sequence[Event]:
    return [service.report(3)]


def a_limit_that_rises(service: Service) -> Sequence[Event]:
    service.announce()
    service.append([service.report(3)])
    return [service.report(4)]


def a_context_too_many(service: Service) -> Sequence[Event]:
    for name in "de":
        events = service.state.create("m", "s", [1], [], EditId(name), BORIS, service.next)
        if name == "d":
            service.append(events)
    return events


def tokens_beyond_the_quota(service: Service) -> Sequence[Event]:
    grown = [Edit(0, 0, (1, 2, 3, 4))]
    return service.state.edit(service.context.id, service.context.epoch, grown, EditId("e"), BORIS, service.next)


def an_end_without_a_lifetime(service: Service) -> Sequence[Event]:
    return service.state.delete(service.context.id, EXPIRY, service.next)


def a_lifetime_that_is_lost(service: Service) -> Sequence[Event]:
    service.append(service.state.contexts.renew(service.context.id, Renewal(0.0, 9.0), BORIS, service.next))
    (edited,) = service.edit()
    assert isinstance(edited, Edited)
    return [replace(edited, lifetime=None)]


def a_renewal_of_no_context(service: Service) -> Sequence[Event]:
    renewed = service.state.contexts.renew(service.context.id, Renewal(0.0, 9.0), BORIS, service.next)
    service.append(service.state.delete(service.context.id, BORIS, service.next))
    return [replace(event, revision=service.next) for event in renewed]


def take_all(checker: WatchChecker, events: Sequence[Event]) -> None:
    for event in events:
        checker.take(event)


@pytest.mark.parametrize(
    ("doctor", "found"),
    [
        (a_gap, "came after revision"),
        (a_member_that_joins_twice, "can't follow"),
        (a_member_that_leaves_with_its_build, "can't follow"),
        (an_entry_of_no_member, "can't follow"),
        (an_entry_of_an_old_epoch, "can't follow"),
        (a_withdrawal_of_what_is_not_held, "can't follow"),
        (an_epoch_that_is_skipped, "came after epoch 0"),
        (a_build_that_outlives_its_epoch, "should have gone"),
        (an_entry_that_outlives_its_context, "should have gone"),
        (a_build_that_is_granted_twice, "can't follow"),
        (a_build_that_ends_without_its_entry, "can't follow"),
        (a_limit_without_an_entry, "can't follow"),
        (a_limit_that_rises, "does not lower"),
        (a_context_too_many, "beyond a quota"),
        (tokens_beyond_the_quota, "beyond a quota"),
        (an_end_without_a_lifetime, "can't follow"),
        (a_lifetime_that_is_lost, "can't follow"),
        (a_renewal_of_no_context, "can't follow"),
    ],
)
def test_a_doctored_watch_is_refused(doctor: Callable[[Service], Sequence[Event]], found: str) -> None:
    service = Service()
    events = doctor(service)
    with pytest.raises(Violation, match=found):
        take_all(service.checker, events)


def test_views_that_differ_are_refused() -> None:
    service = Service()
    view = service.checker.view()
    with pytest.raises(Violation, match="members differ"):
        require_same_view(replace(view, members=(BORIS,)), service.state.snapshot())
    with pytest.raises(Violation, match="the watcher is at"):
        require_same_view(replace(view, revision=Revision(0)), service.state.snapshot())
