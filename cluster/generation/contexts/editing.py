"""Offer shared contexts to clients of both transports. Only this module calls the cache service about contexts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from cache_service.client.client import CacheClient, ContextPage
from cache_service.core.contexts import splice
from cache_service.core.lifetimes import require_ttl
from cache_service.core.types import SOLE_TENANT, Context, ContextId, Edit, EditId, Epoch, ReplicaId, TenantId
from cache_service.errors import (
    CacheServiceError,
    CacheServiceUnavailable,
    InvalidRequest,
    StaleEpoch,
    UnknownContext,
)
from cluster.errors import ContextConflictError, ContextNotFoundError, RequestError
from cluster.generation.contexts.changes import FullRewrite, Replacement, edits_of
from cluster.generation.contexts.drafting import (
    Content,
    ContextDrafter,
    length_written,
    num_holes,
)
from cluster.generation.contexts.refusals import translate_cache_errors
from cluster.generation.encoding import TextEncoder
from cluster.generation.tokenization import Tokenizer
from cluster.metrics import IngressMetrics
from workers.api import ModelInfo

T = TypeVar("T")

EDIT_AUTHOR = ReplicaId("ingress")
PATIENCE_S = 5.0
"""Seconds for which a failed call is retried, so that clients don't notice a restart of the service."""
DEFAULT_PAGE, MAX_PAGE = 20, 100
"""Number of contexts in one page of a list: by default, and at most."""
MAX_EDITS = 64
"""Maximum number of edits in one change: each of them reads the whole context."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 0.5


class ContextService:
    """Creates, reads and edits contexts of the served model. Another tenant's contexts are treated as unknown.

    Every method raises ContextsUnavailableError if the cache service hasn't answered within `patience_s`. A change
    has an id, so that it is carried out only once, however often it is sent.
    """

    def __init__(
        self,
        client: CacheClient,
        encoder: TextEncoder,
        model: Callable[[], Awaitable[ModelInfo]],
        metrics: IngressMetrics,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Reach the cache service through `client`; `model` returns the served model."""
        self._client, self._encoder, self._model = client, encoder, model
        self._commits = metrics.context_commits
        self._patience_s = patience_s
        self._undoing: set[asyncio.Task[None]] = set()

    async def create(
        self, content: Content, salt: str, tenant: TenantId = SOLE_TENANT, ttl_s: float | None = None
    ) -> Context:
        """Create a context that counts for `tenant`, and is deleted `ttl_s` seconds after its last edit.

        Without `ttl_s` the cache service's default holds. A creation whose answer its author can't get, since the call
        was cancelled or took too long, is undone. Raises RequestError for content that the model can't hold,
        ContextQuotaError, and ContextsFullError.
        """
        check_ttl(ttl_s)
        info = await self._model()
        draft = await self._run_draft([content], 0, info, lambda drafter: drafter.draft_whole(content))
        check_length(len(draft.token_ids), info)
        edit_id = EditId(uuid.uuid4().hex)

        def create() -> Awaitable[Context]:
            return self._client.create_context(
                info.fingerprint,
                salt,
                draft.token_ids,
                masked=draft.masked,
                author=EDIT_AUTHOR,
                edit_id=edit_id,
                tenant=tenant,
                ttl_s=ttl_s,
            )

        with translate_cache_errors():
            try:
                return await self._call_with_retry(create)
            except (asyncio.CancelledError, CacheServiceUnavailable):
                self._undo_soon(create)
                raise

    def _undo_soon(self, create: Callable[[], Awaitable[Context]]) -> None:
        """Delete the context that `create` may have made, without keeping its caller waiting."""
        undoing = asyncio.create_task(self._undo(create))
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)

    async def _undo(self, create: Callable[[], Awaitable[Context]]) -> None:
        """Ask again, under the same id, which context it is, and delete that."""
        with suppress(CacheServiceError):
            made = await self._call_with_retry(create)
            await self._call_with_retry(lambda: self._client.delete_context(made.id, author=EDIT_AUTHOR))

    async def read(self, context_id: ContextId, salt: str) -> Context:
        """Return the context at its newest epoch. Raises ContextNotFoundError."""
        with translate_cache_errors():
            context = await self._call_with_retry(lambda: self._client.get_context(context_id))
        if context.salt != salt:
            raise ContextNotFoundError(f"there is no context {context_id!r}")
        return context

    async def read_to_generate(self, context_id: ContextId, salt: str) -> Context:
        """Return the same as `read`. Raises RequestError if the context holds another model's tokens."""
        context, info = await self.read(context_id, salt), await self._model()
        if context.fingerprint != info.fingerprint:
            raise RequestError(f"context {context_id} was made for another model than {info.name}", param="context.id")
        return context

    async def list_page(self, salt: str, limit: int, after: str | None) -> ContextPage:
        """Return one tenant's contexts, oldest first, without tokens. Raises RequestError for an unknown `after`."""
        with translate_cache_errors():
            return await self._call_with_retry(
                lambda: self._client.list_contexts(salt, page_size=limit, page_token=after)
            )

    async def delete(self, context_id: ContextId, salt: str) -> None:
        """Delete the context. Raises ContextNotFoundError."""
        await self.read(context_id, salt)
        with translate_cache_errors(), suppress(UnknownContext):  # an earlier try may have deleted it
            await self._call_with_retry(lambda: self._client.delete_context(context_id, author=EDIT_AUTHOR))

    async def renew(self, context_id: ContextId, salt: str, ttl_s: float, expected: Epoch | None = None) -> Context:
        """Begin the context's time to live again, with `ttl_s`, and return the context; its epoch stays.

        Raises ContextNotFoundError, RequestError, and ContextConflictError if `expected` isn't the newest epoch.
        """
        check_ttl(ttl_s)
        context = await self.read(context_id, salt)
        if expected is not None and context.epoch != expected:
            raise conflict_error(context_id, expected, context.epoch)
        with translate_cache_errors():
            await self._call_with_retry(lambda: self._client.renew_context(context_id, author=EDIT_AUTHOR, ttl_s=ttl_s))
        return await self.read(context_id, salt)

    async def change(
        self,
        context_id: ContextId,
        salt: str,
        expected: Epoch,
        changes: Sequence[Replacement] | FullRewrite,
        ttl_s: float | None = None,
    ) -> Context:
        """Edit the context at epoch `expected`, and return it as this change left it, at epoch `expected` + 1.

        The time to live, if there is one, begins again; `ttl_s` replaces it.
        Raises ContextConflictError if `expected` isn't the newest epoch, ContextNotFoundError, RequestError, and, for
        content that has grown beyond a quota, ContextQuotaError or ContextsFullError.
        """
        check_ttl(ttl_s)
        context = await self.read_to_generate(context_id, salt)
        if context.epoch != expected:
            raise conflict_error(context_id, expected, context.epoch)
        info = await self._model()
        contents = [changes.content] if isinstance(changes, FullRewrite) else [change.content for change in changes]
        if len(contents) > MAX_EDITS:
            raise RequestError(f"one change makes at most {MAX_EDITS} edits, got {len(contents)}", param="edits")
        num_read = len(context.token_ids) * len(contents)
        edits = await self._run_draft(contents, num_read, info, lambda drafter: edits_of(context, changes, drafter))
        with translate_cache_errors():
            token_ids, _ = splice(context, edits)
        check_length(len(token_ids), info)
        return await self.commit(context, edits, ttl_s)

    async def commit(self, context: Context, edits: Sequence[Edit], ttl_s: float | None = None) -> Context:
        """Commit `edits` and return the edited context. Raises ContextConflictError if a newer epoch exists."""
        edit_id = EditId(uuid.uuid4().hex)
        try:
            with translate_cache_errors():
                edited = await self._call_with_retry(
                    lambda: self._client.edit_known_context(
                        context, edits, author=EDIT_AUTHOR, edit_id=edit_id, ttl_s=ttl_s
                    )
                )
        except StaleEpoch as error:
            self._commits.labels("lost").inc()
            newest = await self.read(context.id, context.salt)
            raise conflict_error(context.id, context.epoch, newest.epoch) from error
        self._commits.labels("accepted").inc()
        return edited

    async def _run_draft(
        self, contents: Sequence[Content], num_read: int, info: ModelInfo, draft: Callable[[ContextDrafter], T]
    ) -> T:
        """Run `draft` without blocking the event loop: it reads `num_read` tokens and encodes `contents`.

        Raises RequestError for more holes than the context length, before any is made.
        """
        check_length(sum(map(num_holes, contents)), info)

        def work(tokenizer: Tokenizer) -> T:
            return draft(ContextDrafter(tokenizer, info.mask_token_id))

        return await self._encoder.run(num_read + sum(map(length_written, contents)), work)

    async def _call_with_retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the service's answer; retry a call while the service is unreachable. Raises CacheServiceError."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(CacheServiceUnavailable),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=stop_after_delay(self._patience_s),
            reraise=True,
        ):
            with attempt:
                answer = await call()
        return answer


def check_length(num_tokens: int, info: ModelInfo) -> None:
    """Raise RequestError for content that leaves no room for an answer."""
    if num_tokens >= info.context_length:
        raise RequestError(
            f"a shared context of {num_tokens} tokens leaves no room for an answer in the model's "
            f"{info.context_length}: shorten it",
            code="context_length_exceeded",
        )


def check_ttl(ttl_s: float | None) -> None:
    """Raise RequestError for a time to live out of bounds."""
    try:
        if ttl_s is not None:
            require_ttl(ttl_s, "ttl_s")
    except InvalidRequest as error:
        raise RequestError(str(error), param="ttl_s") from error


def conflict_error(context_id: ContextId, expected: Epoch, newest: Epoch) -> ContextConflictError:
    return ContextConflictError(
        f"context {context_id} is at epoch {newest}, the change was made for {expected}: read it, and try again",
        current_epoch=newest,
    )
