from __future__ import annotations

from cache_service.core.events import Event, Left
from cache_service.core.mirror import Mirror, Moved, News
from cache_service.core.state import State
from cache_service.core.types import FIRST_EPOCH, Build, DepthLimit, DepthTable, Edit, EditId, Lease, Revision
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


class Service:
    """Holds a service's state with one member, and a mirror that takes every event."""

    def __init__(self) -> None:
        self.state, self.mirror = State(), Mirror()
        self.append(self.state.register(ANNA, 9.0, self.state.next_revision, DepthTable(1, 8)))

    @property
    def lease(self) -> Lease:
        return self.state.directory.lease_of(ANNA)

    def append(self, events: tuple[Event, ...]) -> list[News]:
        for event in events:
            self.state.apply(event)
        return [self.mirror.take(event) for event in events]

    def acquire(self, name: str) -> Build:
        self.append(self.state.acquire(self.lease, key(name), FIRST_EPOCH, None, 2.0, self.state.next_revision))
        return self.state.builds.in_progress(key(name), FIRST_EPOCH)


def test_a_mirror_of_events_equals_a_mirror_of_their_snapshot() -> None:
    service = Service()
    service.append(service.state.announce(service.lease, [placed("a", ANNA)], service.state.next_revision))
    service.append(service.state.directory.drain(service.lease, service.state.next_revision))
    service.acquire("b")
    late = Mirror()
    assert late.take(service.state.snapshot()).is_restart
    assert late.state.snapshot() == service.mirror.state.snapshot() == service.state.snapshot()


def test_the_news_names_builds_that_ended_with_an_entry_or_without() -> None:
    service = Service()
    build, released = service.acquire("a"), service.acquire("b")
    placement = placed("a", ANNA)
    completed = service.append(
        service.state.complete(service.lease, build.token, placement, service.state.next_revision)
    )
    assert [news.ended_builds for news in completed] == [frozenset(), {build.token}]
    [left, *_] = service.append(service.state.leave(service.lease, service.state.next_revision))
    assert left.ended_builds == {released.token}


def test_a_snapshot_tells_which_builds_have_ended_meanwhile() -> None:
    service = Service()
    ended, in_progress = service.acquire("a"), service.acquire("b")
    late = Mirror()
    late.take(service.state.snapshot())
    release = service.state.release(service.lease, ended.key, ended.epoch, ended.token, service.state.next_revision)
    service.append(release)
    assert late.take(service.state.snapshot()).ended_builds == {ended.token}
    assert late.state.builds.all() == (in_progress,)


def test_an_edit_moves_content_and_renames_every_key_of_the_context() -> None:
    service = Service()
    service.append(service.state.contexts.create("m", "s", [1, 2], [], EditId("c"), BORIS, service.state.next_revision))
    [before] = service.state.contexts.all()
    edits = [Edit(0, 1, (5,))]
    events = service.state.edit(before.id, FIRST_EPOCH, edits, EditId("d"), BORIS, service.state.next_revision)
    [news] = service.append(events)
    [after] = service.state.contexts.all()
    assert news == News(moved=(Moved(before.key, after),), renamed=frozenset({before.key, after.key}))


def test_a_deletion_moves_content_unless_another_context_has_it() -> None:
    service = Service()
    for edit_id in ("c1", "c2"):
        service.append(
            service.state.contexts.create("m", "s", [1, 2], [], EditId(edit_id), BORIS, service.state.next_revision)
        )
    first, second = service.state.contexts.all()
    [news] = service.append(service.state.delete(first.id, BORIS, service.state.next_revision))
    assert news == News(renamed=frozenset({first.key}))
    [news] = service.append(service.state.delete(second.id, BORIS, service.state.next_revision))
    assert news == News(moved=(Moved(first.key, None),), renamed=frozenset({first.key}))


def test_a_limit_is_news_and_so_is_its_end() -> None:
    service = Service()
    service.append(service.state.announce(service.lease, [placed("a", ANNA)], service.state.next_revision))
    limit = DepthLimit(key("a"), 60, 3, 1)
    [news] = service.append(service.state.report_drift(service.lease, [limit], service.state.next_revision))
    assert news == News(limits=(limit,))
    restart = service.mirror.take(service.state.snapshot())
    assert restart == News(lifted=frozenset({limit.key}), limits=(limit,), is_restart=True)
    [news] = service.append(service.state.directory.withdraw(service.lease, [limit.key], service.state.next_revision))
    assert news == News(lifted=frozenset({limit.key}))
    assert service.mirror.state.depths.all() == ()


def test_an_event_that_is_known_already_is_no_news() -> None:
    service = Service()
    assert service.mirror.take(Left(Revision(1), ANNA)) == News()
    assert service.mirror.state.directory.members() == (service.lease,)


def test_a_snapshot_reports_what_moved_between_two_watches() -> None:
    service = Service()
    for salt, edit_id in (("edited", "c1"), ("deleted", "c2"), ("kept", "c3"), ("twin", "c4"), ("twin", "c5")):
        service.append(
            service.state.contexts.create("m", salt, [1, 2], [], EditId(edit_id), BORIS, service.state.next_revision)
        )
    edited, deleted, _, twin, _ = service.state.contexts.all()
    late = Mirror()
    late.take(service.state.snapshot())
    events = service.state.edit(
        edited.id, FIRST_EPOCH, [Edit(0, 1, (5,))], EditId("d"), BORIS, service.state.next_revision
    )
    service.append(events)
    for gone in (deleted, twin):
        service.append(service.state.delete(gone.id, BORIS, service.state.next_revision))
    news = late.take(service.state.snapshot())
    after = service.state.contexts.get(edited.id)
    assert set(news.moved) == {Moved(edited.key, after), Moved(deleted.key, None)}


def test_a_snapshot_reports_no_move_of_content_that_another_context_has() -> None:
    service = Service()
    for edit_id in ("c1", "c2"):
        service.append(
            service.state.contexts.create("m", "s", [1, 2], [], EditId(edit_id), BORIS, service.state.next_revision)
        )
    first, _ = service.state.contexts.all()
    edits = [Edit(0, 1, (5,))]
    service.append(service.state.edit(first.id, FIRST_EPOCH, edits, EditId("d"), BORIS, service.state.next_revision))
    assert Mirror().take(service.state.snapshot()).moved == ()


def test_a_member_that_drained_and_left_takes_work_when_it_joins_again() -> None:
    service = Service()
    service.append(service.state.directory.drain(service.lease, service.state.next_revision))
    assert service.state.directory.is_draining(ANNA)
    service.append(service.state.leave(service.lease, service.state.next_revision))
    service.append(service.state.register(ANNA, 9.0, service.state.next_revision))
    for state in (service.state, service.mirror.state):
        assert not state.directory.is_draining(ANNA)
        assert state.snapshot().draining == ()
