"""Logs in Redis and instances of other versions rely on the encoding of events."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from cache_service.core.events import (
    Announced,
    Built,
    Created,
    Deleted,
    Draining,
    Edited,
    Event,
    Granted,
    Joined,
    Left,
    Limited,
    Released,
    Renewed,
    Withdrawn,
)
from cache_service.core.types import (
    Build,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    FencingToken,
    Lease,
    LeaseId,
    Lifetime,
    Placement,
    PrefixKey,
    Revision,
    TenantId,
    Version,
)
from cache_service.rpc.convert import event_from_pb, event_to_pb
from protos import cache_v1_pb2 as pb
from tests.unit.cache_service.builders import ANNA

KEY, CONTEXT_ID = PrefixKey(b"k" * 20), ContextId("ctx-1")
PLACEMENT = Placement(KEY, ANNA, 128, 4, 4096, Epoch(1), CONTEXT_ID, heat=3, token=FencingToken(7))
VERSION = Version(Epoch(1), PrefixKey(b"v" * 20), EditId("c1"))
PAST = Version(Epoch(0), KEY, EditId("c0"))
CONTEXT = Context(CONTEXT_ID, "model", "salt", (1, 99, 3), (1,), Revision(6), EditId("c0"), VERSION, (PAST,))
BUILD = Build(KEY, Epoch(1), ANNA, FencingToken(9), 2.5, CONTEXT_ID)
EDITS = (Edit(1, 2, (7, 8)), Edit(3, 3, (99,), masked=True))

ENCODED: list[tuple[Event, str]] = [
    (Joined(Revision(1), Lease(LeaseId(1), ANNA, 3.0)), "080110011a04616e6e612a1108011204616e6e61190000000000000840"),
    (
        Joined(Revision(1), Lease(LeaseId(1), ANNA, 3.0, DepthTable(2, 12))),
        "080110011a04616e6e612a1708011204616e6e6119000000000000084022040802100c",
    ),
    (Left(Revision(2), ANNA), "080210021a04616e6e61"),
    (Draining(Revision(3), ANNA), "080310051a04616e6e61"),
    (
        Announced(Revision(4), PLACEMENT),
        "080410031a04616e6e6122310a146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b1204616e6e611880012004288020"
        "30013a056374782d3140034807",
    ),
    (
        Withdrawn(Revision(5), PLACEMENT),
        "080510041a04616e6e6122310a146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b1204616e6e611880012004288020"
        "30013a056374782d3140034807",
    ),
    (
        Created(Revision(6), ANNA, CONTEXT),
        "080610061a04616e6e61325c0a056374782d3112056d6f64656c1a0473616c7422030163032a010130063a1c08011214"
        "76767676767676767676767676767676767676761a026331421a12146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b"
        "1a0263304a026330",
    ),
    (
        Edited(Revision(7), ANNA, CONTEXT_ID, VERSION, EDITS),
        "080710071a04616e6e613a3a0a056374782d31121c0801121476767676767676767676767676767676767676761a0263"
        "311a08080110021a0207081a09080310031a01632001",
    ),
    (Deleted(Revision(8), ANNA, CONTEXT_ID), "080810081a04616e6e6142056374782d31"),
    (
        Granted(Revision(9), BUILD),
        "080910091a04616e6e614a300a146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b10011a04616e6e61200929000000"
        "000000044032056374782d31",
    ),
    (
        Built(Revision(10), BUILD),
        "080a100a1a04616e6e614a300a146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b10011a04616e6e61200929000000"
        "000000044032056374782d31",
    ),
    (
        Released(Revision(11), BUILD),
        "080b100b1a04616e6e614a300a146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b10011a04616e6e61200929000000"
        "000000044032056374782d31",
    ),
    (
        Limited(Revision(12), ANNA, DepthLimit(KEY, 60, 3, 1)),
        "080c100c1a04616e6e61521c0a146b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b103c18032001",
    ),
    (
        Renewed(Revision(13), ANNA, CONTEXT_ID, Lifetime(60.0, 1_795_314_461.5)),
        "080d100d1a04616e6e615a1b0a056374782d311212090000000000004e4011000060c794c0da41",
    ),
]


@pytest.mark.parametrize(("event", "encoded"), ENCODED, ids=[event.kind for event, _ in ENCODED])
def test_the_encoding_of_an_event_does_not_change(event: Event, encoded: str) -> None:
    assert event_to_pb(event).SerializeToString(deterministic=True).hex() == encoded
    assert event_from_pb(pb.Event.FromString(bytes.fromhex(encoded))) == event


def test_tenant_and_lifetime_survive_the_wire() -> None:
    lifetime = Lifetime(60.0, 1_795_314_461.5)
    events: tuple[Event, ...] = (
        Created(Revision(6), ANNA, replace(CONTEXT, tenant=TenantId("red"), lifetime=lifetime)),
        Edited(Revision(7), ANNA, CONTEXT_ID, VERSION, EDITS, lifetime),
    )
    for event in events:
        assert event_from_pb(event_to_pb(event)) == event


def test_every_kind_of_event_has_an_encoding() -> None:
    kinds = {f"EVENT_KIND_{event.kind.upper()}" for event in get_args(Event)}
    assert kinds == set(pb.EventKind.keys()) - {"EVENT_KIND_UNSPECIFIED"}
    assert {type(event) for event, _ in ENCODED} == set(get_args(Event))
