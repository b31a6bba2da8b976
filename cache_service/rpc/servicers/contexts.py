"""Serve `palimpsest.cache.v1.Contexts`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

import re
from dataclasses import replace

from grpc.aio import ServicerContext

from cache_service.core.events import Created, Edited, Renewed
from cache_service.core.lifetimes import Renewal
from cache_service.core.types import Context, ContextId, EditId, Epoch, ReplicaId, Revision, TenantId
from cache_service.errors import InvalidRequest
from cache_service.rpc import convert
from cache_service.rpc.servicers.base import Servicer
from protos import cache_v1_pb2 as pb

DEFAULT_PAGE = 100
MAX_PAGE = 1000
PAGE_TOKEN = "[0-9]{0,20}"
"""The revision that created the last context of the page before; empty for the first page."""


class ContextsServicer(Servicer):
    """Serves the calls that create, read, edit and delete contexts."""

    async def Create(self, request: pb.CreateContextRequest, _: ServicerContext) -> pb.CreateContextResponse:
        edit_id, author, tenant = EditId(request.commit_id), ReplicaId(request.author), TenantId(request.tenant)
        fingerprint, salt, token_ids, masked = request.fingerprint, request.salt, request.token_ids, request.masked
        quotas = self.service.quotas
        renewal = self._renewal(request, quotas.default_ttl_s)
        events = await self.append(
            lambda state, at: state.create(
                fingerprint, salt, token_ids, masked, edit_id, author, at, tenant=tenant, quotas=quotas, renewal=renewal
            )
        )
        created = next((event.context for event in events if isinstance(event, Created)), None)
        context = created or self.service.store.state.contexts.find_by_edit(edit_id)
        return pb.CreateContextResponse(header=self.header(), context=convert.context_to_pb(context))

    async def Get(self, request: pb.GetContextRequest, _: ServicerContext) -> pb.GetContextResponse:
        context = (await self.state()).contexts.get(ContextId(request.id))
        if context.version.edit_id == request.known_commit_id:
            context = without_content(context)
        return pb.GetContextResponse(header=self.header(), context=convert.context_to_pb(context))

    async def List(self, request: pb.ListContextsRequest, _: ServicerContext) -> pb.ListContextsResponse:
        size = request.page_size or DEFAULT_PAGE
        if size > MAX_PAGE:
            raise InvalidRequest(f"page_size must be at most {MAX_PAGE}, got {size}")
        if not re.fullmatch(PAGE_TOKEN, request.page_token):
            raise InvalidRequest(f"page_token {request.page_token!r} was not returned by List")
        after = Revision(int(request.page_token or 0))
        found = (await self.state()).contexts.page(request.salt, after, size + 1)
        page, more = found[:size], found[size:]
        return pb.ListContextsResponse(
            header=self.header(),
            contexts=[convert.context_to_pb(without_content(context)) for context in page],
            next_page_token=str(page[-1].created) if more else "",
        )

    async def Commit(self, request: pb.CommitRequest, _: ServicerContext) -> pb.CommitResponse:
        context_id, expected = ContextId(request.context), Epoch(request.expected_epoch)
        edits = [convert.edit_from_pb(message) for message in request.edits]
        edit_id, author = EditId(request.commit_id), ReplicaId(request.author)
        quotas, renewal = self.service.quotas, self._renewal(request)
        events = await self.append(
            lambda state, at: state.edit(
                context_id, expected, edits, edit_id, author, at, quotas=quotas, renewal=renewal
            )
        )
        made = next((event for event in events if isinstance(event, Edited)), None)
        known = self.service.store.state.contexts
        version = made.version if made else known.version_of_edit(context_id, edit_id)
        lifetime = made.lifetime if made else known.get(context_id).lifetime
        return pb.CommitResponse(
            header=self.header(), version=convert.version_to_pb(version), lifetime=convert.lifetime_to_pb(lifetime)
        )

    async def Renew(self, request: pb.RenewContextRequest, _: ServicerContext) -> pb.RenewContextResponse:
        context_id, author, renewal = ContextId(request.id), ReplicaId(request.author), self._renewal(request)
        events = await self.append(lambda state, at: state.contexts.renew(context_id, renewal, author, at))
        lifetime = next((event.lifetime for event in events if isinstance(event, Renewed)), None)
        return pb.RenewContextResponse(header=self.header(), lifetime=convert.lifetime_to_pb(lifetime))

    async def Delete(self, request: pb.DeleteContextRequest, _: ServicerContext) -> pb.DeleteContextResponse:
        context_id, author = ContextId(request.id), ReplicaId(request.author)
        await self.append(lambda state, at: state.delete(context_id, author, at))
        return pb.DeleteContextResponse(header=self.header())

    def _renewal(
        self,
        request: pb.CreateContextRequest | pb.CommitRequest | pb.RenewContextRequest,
        default_ttl_s: float | None = None,
    ) -> Renewal:
        return Renewal(self.service.wall_clock(), request.ttl_s if request.HasField("ttl_s") else default_ttl_s)


def without_content(context: Context) -> Context:
    return replace(context, token_ids=(), masked=())
