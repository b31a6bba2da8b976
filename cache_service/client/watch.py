"""Combine successive Watch calls into one endless watch."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from cache_service.client.connection import Connection, Instance
from cache_service.client.contact import MAX_SILENCE_S, WatchContact
from cache_service.core.cursor import Cursor, Update
from cache_service.core.events import Event
from cache_service.core.types import Snapshot
from cache_service.errors import CacheServiceError, CacheServiceUnavailable, Compacted
from cache_service.rpc import convert
from cache_service.rpc.status import error_of
from protos import cache_v1_pb2 as pb

_log = logging.getLogger(__name__)

MAX_BACKOFF_S = 2.0


class WatchStream:
    """Reads successive Watch calls, to any of the instances, as if they were one call."""

    def __init__(self, connection: Connection, contact: WatchContact, *, with_content: bool = True) -> None:
        self._connection, self._contact, self._with_content = connection, contact, with_content
        contact.record_begin()
        self._cursor = Cursor()
        self._instance: Instance | None = None
        self._call: Any = None
        self._reading = AsyncRetrying(
            retry=retry_if_exception_type(CacheServiceError),
            wait=wait_random_exponential(multiplier=0.05, max=MAX_BACKOFF_S),
            before_sleep=self._log_first_failure,
        )

    async def read(self) -> tuple[Snapshot | Event, ...]:
        """Return the next snapshot and events; begin a new call whenever one ends."""
        return await self._reading(self._read_once)

    def cancel(self) -> None:
        """End the current call; `read` would begin another."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _read_once(self) -> tuple[Snapshot | Event, ...]:
        try:
            response = await self._receive()
            self._contact.record_message()
            if not self._with_content:
                convert.drop_content(response)
            return self._cursor.take(update_of(response))
        except Compacted:
            self._cursor.reset()
            self.cancel()
            raise
        except CacheServiceError as error:
            self._contact.record_failure(error)
            self.cancel()
            if self._instance is not None:
                self._connection.fail_over(self._instance)
            raise

    async def _receive(self) -> pb.WatchResponse:
        if self._call is None:
            self._instance = self._connection.current
            after, incarnation = self._cursor.resume(), self._cursor.incarnation
            self._call = self._instance.events.Watch(pb.WatchRequest(after_revision=after, incarnation=incarnation))
        try:
            async with asyncio.timeout(MAX_SILENCE_S):
                response = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        except TimeoutError as silence:
            raise CacheServiceUnavailable(f"the service has sent nothing for {MAX_SILENCE_S:g} s") from silence
        if not isinstance(response, pb.WatchResponse):
            raise CacheServiceUnavailable("the service ended the watch")
        return response

    def _log_first_failure(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            _log.warning("the watch of the cache service is interrupted, trying again: %s", state.outcome.exception())


def update_of(response: pb.WatchResponse) -> Update:
    """Decode the update. Raises Compacted for events that only a newer service knows; a snapshot has their outcome."""
    try:
        return convert.update_from_pb(response)
    except ValueError as error:
        raise Compacted(str(error)) from error
