"""Check what clients observe of builds: one at a time, under rising tokens, and none that has ended."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from cache_service.core.types import Build, ContextId, Epoch, FencingToken, Lease, PrefixKey, ReplicaId
from cache_service.testing.moments import Clock, Moments, Rising, Violation

_Subject = tuple[PrefixKey, Epoch, ContextId | None]
"""An entry that at most one member builds at a time. Contexts of equal content may share a build, but the end of one
context frees it for the other."""


@dataclass(slots=True)
class _Grant:
    """Holds a build as its holder knows it: alive until `safe_until`, unless the holder has given it up."""

    build: Build
    safe_until: float
    given_up: bool = False


def _subject(build: Build) -> _Subject:
    return build.key, build.epoch, build.context


class BuildHistory:
    """Checks the calls about builds of one history. A method raises Violation if an observation can't be true."""

    def __init__(self, moments: Moments, lease_clock: Clock) -> None:
        self._moments, self._lease_clock = moments, lease_clock
        self.num_grants = 0
        self.num_fenced = 0
        self._tokens: defaultdict[_Subject, Rising] = defaultdict(Rising)
        self._grants: dict[_Subject, _Grant] = {}
        self._completions: dict[FencingToken, int] = {}
        self._ended: dict[FencingToken, int] = {}
        self._registrations: defaultdict[ReplicaId, Rising] = defaultdict(Rising)

    def end_register(self, lease: Lease) -> None:
        """Record that every build of an older registration has ended."""
        self._registrations[lease.replica].rise(self._moments.now, lease.id)

    def end_acquire(self, began: int, build: Build, safe_until: float) -> None:
        """Require that a build is granted only once the one before has ended, and under a higher token.

        `safe_until` is when the lease of the build, or of its member, can lapse at the earliest.
        """
        self.see(began, build)
        subject = _subject(build)
        held = self._grants.get(subject)
        if held is not None and build.token <= held.build.token:
            if build.token < self._tokens[subject].before(began):
                raise Violation(f"{build} was granted after token {self._tokens[subject].before(began)}")
            return  # the same build again, or a late answer about one that has ended
        now = self._lease_clock()
        if held is not None and not held.given_up and now < held.safe_until:
            raise Violation(f"two builds at once: {build} at {now}, and {held.build} until {held.safe_until}")
        self.num_grants += 1
        self._tokens[subject].rise(self._moments.now, build.token)
        self._grants[subject] = _Grant(build, safe_until)

    def see(self, began: int, build: Build) -> None:
        """Require that a build which an answer names, anyone's, had not ended before the question was sent."""
        if self._ended.get(build.token, began) < began:
            raise Violation(f"{build} is said to be under way, though its end had been acknowledged before")
        registration = self._registrations[build.replica].before(began)
        if build.token < registration:
            raise Violation(f"{build} has outlived its registration: the replica has lease {registration} by now")

    def end_extend(self, began: int, build: Build, safe_until: float) -> None:
        self.see(began, build)
        held = self._grants.get(_subject(build))
        if held is not None and held.build.token == build.token:
            held.safe_until = max(held.safe_until, safe_until)

    def give_up(self, build: Build) -> None:
        """Record that the holder is about to end its build or its membership."""
        held = self._grants.get(_subject(build))
        if held is not None and held.build.token == build.token:
            held.given_up = True

    def end_release(self, build: Build) -> None:
        """Record that the service has acknowledged the end of a build."""
        self._ended.setdefault(build.token, self._moments.now)

    def begin_complete(self, build: Build) -> int:
        """Record that a completion will be sent. If it was carried out, the answer to a retry may be for this one."""
        moment = self._moments.begin()
        self._completions.setdefault(build.token, moment)
        self.give_up(build)
        return moment

    def end_complete(self, build: Build) -> None:
        """Require that an accepted write has no lower token than any that was granted before it was first sent."""
        newest = self._tokens[_subject(build)].before(self._completions[build.token])
        if build.token < newest:
            raise Violation(f"a write under token {build.token} was accepted though {newest} had been granted before")
        self.end_release(build)

    def end_fenced(self) -> None:
        """Count a write that was refused for its token, which is right if the build was lost."""
        self.num_fenced += 1
