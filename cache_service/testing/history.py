"""Check clients' observations against the invariants of the protocol during a run.

The checker believes only what clients observe: when a call began, when and how it ended. A call that got no answer
may or may not have been carried out, so it proves nothing. All times come from one clock, which must not run ahead
of the clock of the leases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cache_service.core.events import Created, Edited, Event, Limited
from cache_service.core.state import State
from cache_service.core.types import (
    Build,
    Context,
    ContextId,
    Epoch,
    FencingToken,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    Version,
)


class Violation(AssertionError):  # noqa: N818 (the name says what it is)
    """An invariant of the protocol was broken."""


class _Rising:
    """Holds a value that only rises, with its value at every earlier moment."""

    def __init__(self) -> None:
        self._moments: list[int] = []
        self._values: list[int] = []

    def rise(self, moment: int, value: int) -> None:
        if not self._values or value > self._values[-1]:
            self._moments.append(moment)
            self._values.append(value)

    def before(self, moment: int) -> int:
        """Return the value before `moment`, or -1 if none was known yet."""
        index = bisect_left(self._moments, moment)
        return self._values[index - 1] if index else -1


@dataclass(slots=True)
class _Grant:
    """Holds a build as its holder knows it: alive until `safe_until`, unless the holder has given it up."""

    build: Build
    safe_until: float
    given_up: bool = False


_Subject = tuple[PrefixKey, Epoch, ContextId | None]
"""An entry that at most one member builds at a time. Contexts of equal content may share a build, but the end of one
context frees it for the other."""


def _subject(build: Build) -> _Subject:
    return build.key, build.epoch, build.context


class HistoryChecker:
    """Checks one history of many clients. Each method raises Violation if an observation can't be true.

    `begin` is called before a call is sent, and returns a moment. The end of the call is judged by all that had been
    acknowledged, to any client, before that moment.
    """

    def __init__(self) -> None:
        self.num_operations = 0
        self.num_reads = 0
        self.num_grants = 0
        self.num_fenced = 0
        self._epochs: defaultdict[ContextId, _Rising] = defaultdict(_Rising)
        self._tokens: defaultdict[_Subject, _Rising] = defaultdict(_Rising)
        self._deleted: dict[ContextId, int] = {}
        self._versions: dict[tuple[ContextId, Epoch], Version] = {}
        self._grants: dict[_Subject, _Grant] = {}
        self._completions: dict[FencingToken, int] = {}
        self._salts: dict[PrefixKey, str] = {}
        self._dead: dict[ReplicaId, float] = {}

    def begin(self) -> int:
        """Return the moment at which a call is sent."""
        self.num_operations += 1
        return self.num_operations

    def end_lookup(self, began: int, found: Iterable[Placement], max_staleness: int, now: float) -> None:
        """Require that no entry was older than allowed when the read began, or of a member that must be gone."""
        self.num_reads += 1
        for placement in found:
            if now > self._dead.get(placement.replica, now):
                raise Violation(f"{placement.replica} is dead beyond its TTL at {now}, yet listed: {placement}")
            if placement.context is not None:
                self._require_fresh(began, placement.context, placement.epoch, max_staleness)

    def end_get(self, began: int, context: Context) -> None:
        """Require that a read returns no older epoch of a context than was acknowledged before."""
        self.num_reads += 1
        self._require_fresh(began, context.id, context.epoch, 0)
        self._require_own_key(context)

    def _require_fresh(self, began: int, context: ContextId, epoch: Epoch, max_staleness: int) -> None:
        newest = self._epochs[context].before(began)
        if newest - epoch > max_staleness:
            raise Violation(f"stale read of {context}: {epoch}, though {newest} had been acknowledged before")
        if self._deleted.get(context, began) < began:
            raise Violation(f"stale read of {context}: its deletion had been acknowledged before")

    def end_create(self, context: Context) -> None:
        self._epochs[context.id].rise(self.num_operations, context.epoch)
        self._require_own_key(context)

    def end_edit(self, context: ContextId, version: Version) -> None:
        """Require that of the edits to one epoch only one is accepted."""
        accepted = self._versions.setdefault((context, version.epoch), version)
        if accepted != version:
            raise Violation(f"two edits made epoch {version.epoch} of {context}: {accepted} and {version}")
        self._epochs[context].rise(self.num_operations, version.epoch)

    def end_delete(self, context: ContextId) -> None:
        self._deleted.setdefault(context, self.num_operations)

    def _require_own_key(self, context: Context) -> None:
        if self._salts.setdefault(context.key, context.salt) != context.salt:
            raise Violation(f"salts {context.salt!r} and {self._salts[context.key]!r} share {context.key.hex()}")

    def end_acquire(self, began: int, build: Build, safe_until: float, now: float) -> None:
        """Require that a build is granted only once the one before has ended, and under a higher token.

        `safe_until` is when the lease of the build, or of its member, can lapse at the earliest.
        """
        subject = _subject(build)
        held = self._grants.get(subject)
        if held is not None and build.token <= held.build.token:
            if build.token < self._tokens[subject].before(began):
                raise Violation(f"{build} was granted after token {self._tokens[subject].before(began)}")
            return  # the same build again, or a late answer about one that has ended
        if held is not None and not held.given_up and now < held.safe_until:
            raise Violation(f"two builds at once: {build} at {now}, and {held.build} until {held.safe_until}")
        self.num_grants += 1
        self._tokens[subject].rise(self.num_operations, build.token)
        self._grants[subject] = _Grant(build, safe_until)

    def end_extend(self, build: Build, safe_until: float) -> None:
        held = self._grants.get(_subject(build))
        if held is not None and held.build.token == build.token:
            held.safe_until = max(held.safe_until, safe_until)

    def give_up(self, build: Build) -> None:
        """Record that the holder is about to end its build or its membership."""
        held = self._grants.get(_subject(build))
        if held is not None and held.build.token == build.token:
            held.given_up = True

    def begin_complete(self, build: Build) -> None:
        """Record that a completion will be sent. If it was carried out, the answer to a retry may be for this one."""
        self._completions.setdefault(build.token, self.begin())
        self.give_up(build)

    def end_complete(self, build: Build) -> None:
        """Require that an accepted write has no lower token than any that was granted before it was first sent."""
        newest = self._tokens[_subject(build)].before(self._completions[build.token])
        if build.token < newest:
            raise Violation(f"a write under token {build.token} was accepted though {newest} had been granted before")

    def end_fenced(self) -> None:
        """Count a write that was refused for its token, which is right if the build was lost."""
        self.num_fenced += 1

    def died(self, replica: ReplicaId, gone_by: float) -> None:
        """Record that the replica sends nothing more; after `gone_by` it must not be listed."""
        self._dead[replica] = gone_by

    def __repr__(self) -> str:
        counts = f"{self.num_reads} reads, {self.num_grants} grants, {self.num_fenced} fenced"
        return f"<HistoryChecker [{self.num_operations} operations: {counts}]>"


class WatchChecker:
    """Checks what one watcher receives: a snapshot, then every event once and in order."""

    def __init__(self) -> None:
        self._revision: Revision | None = None
        self._epochs: dict[ContextId, Epoch] = {}
        self.num_events = 0
        self.num_snapshots = 0

    def take(self, item: Snapshot | Event) -> None:
        """Check the next item. Raises Violation on an event out of order."""
        if isinstance(item, Snapshot):
            self.num_snapshots += 1
            self._epochs = {context.id: context.epoch for context in item.contexts}
        else:
            self.num_events += 1
            if self._revision is None or item.revision != self._revision + 1:
                raise Violation(f"event {item.revision} came after revision {self._revision}")
            self._follow(item)
        self._revision = item.revision

    def _follow(self, event: Event) -> None:
        match event:
            case Created(context=context):
                self._epochs[context.id] = context.epoch
            case Edited(context_id=context_id, version=version):
                before = self._epochs[context_id]
                if version.epoch != before + 1:
                    raise Violation(f"{event} came after epoch {before}")
                self._epochs[context_id] = version.epoch
            case _:
                pass


def require_falling_limit(event: Event, before: State) -> None:
    """Raise Violation if `event` raises a depth limit in force, under the same version of the depth table."""
    if not isinstance(event, Limited):
        return
    for known in before.depths.lookup([event.limit.key]):
        is_same = (known.bucket, known.depth_table_version) == (event.limit.bucket, event.limit.depth_table_version)
        if is_same and event.limit.depth >= known.depth:
            raise Violation(f"{event} does not lower {known}")


def require_same_view(view: Snapshot, store: Snapshot) -> None:
    """Raise Violation unless a watcher knows what the store knows. Order within a snapshot has no meaning."""
    for name in ("members", "placements", "draining", "contexts", "builds", "limits"):
        seen, known = set(getattr(view, name)), set(getattr(store, name))
        if seen != known:
            raise Violation(f"{name} differ at {view.revision}: only seen {seen - known}, only known {known - seen}")
    if view.revision != store.revision:
        raise Violation(f"the watcher is at {view.revision}, the store at {store.revision}")
