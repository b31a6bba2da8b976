"""Streaming clients ask a running server over HTTP and gRPC, from a process of their own."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc
import httpx2 as httpx

from benchmarks.traffic import Timing, Traffic
from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub

Transport = Literal["HTTP", "gRPC"]
TIMEOUT_S = 1200.0


@dataclass(frozen=True)
class Address:
    """Names a server's target and the transport to it."""

    transport: Transport
    target: str


class Client(Protocol):
    """Streams the answers to prompts."""

    def ask(self, traffic: Traffic, prompt: tuple[int, ...]) -> AsyncIterator[int | None]:
        """Yield None for each piece of text, and at the end the number of completed tokens."""
        ...


class HttpClient:
    """Reads `/v1/completions` as server-sent events."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def ask(self, traffic: Traffic, prompt: tuple[int, ...]) -> AsyncIterator[int | None]:
        params = traffic.params
        diffusion = {"steps": params.num_steps, "block_length": params.block_length, "min_tokens": params.min_tokens}
        body = {
            "prompt": prompt,
            "max_tokens": traffic.canvas,
            "stream": True,
            "stream_options": {"include_usage": True},
            "diffusion": diffusion,
        }
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.is_error:
                raise RuntimeError((await response.aread()).decode())
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                if event["choices"] and event["choices"][0]["text"]:
                    yield None
                if event.get("usage"):
                    yield event["usage"]["completion_tokens"]


class GrpcClient:
    """Reads the stream of `GenerateStream`."""

    def __init__(self, stub: InferenceStub) -> None:
        self._stub = stub

    async def ask(self, traffic: Traffic, prompt: tuple[int, ...]) -> AsyncIterator[int | None]:
        params = traffic.params
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt),
            max_tokens=traffic.canvas,
            diffusion=pb.DiffusionOptions(
                steps=params.num_steps, block_length=params.block_length, min_tokens=params.min_tokens
            ),
        )
        async for piece in self._stub.GenerateStream(request, timeout=TIMEOUT_S):
            if piece.text:
                yield None
            if piece.HasField("usage"):
                yield piece.usage.completion_tokens


@asynccontextmanager
async def connect(address: Address) -> AsyncIterator[Client]:
    if address.transport == "gRPC":
        async with grpc.aio.insecure_channel(address.target) as channel:
            yield GrpcClient(InferenceStub(channel))
    else:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=address.target, timeout=TIMEOUT_S, limits=limits, trust_env=False
        ) as http:
            yield HttpClient(http)


class Clients:
    """Drives clients in another process."""

    def __init__(self, process: ProcessPoolExecutor) -> None:
        self._process = process

    def drive(self, address: Address, traffic: Traffic, first_turn: int = 0) -> Timing:
        """Send every stream's requests and time their answers. Raises the error that a client gets instead of one."""
        return self._process.submit(_drive, address, traffic, first_turn).result()


@contextmanager
def clients() -> Iterator[Clients]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield Clients(process)


def _drive(address: Address, traffic: Traffic, first_turn: int) -> Timing:
    return asyncio.run(_run_streams(address, traffic, first_turn))


async def _run_streams(address: Address, traffic: Traffic, first_turn: int) -> Timing:
    turns = range(first_turn, first_turn + traffic.rounds)
    prompts = [[traffic.prompt(stream, turn) for turn in turns] for stream in range(traffic.streams)]
    async with connect(address) as client:
        started = time.perf_counter()
        answers_of = await asyncio.gather(*(_run_stream(client, traffic, prompts_of_one) for prompts_of_one in prompts))
        elapsed_s = time.perf_counter() - started
    flat = [answer for answers in answers_of for answer in answers]
    return Timing(
        elapsed_s,
        [answer.first_s for answer in flat],
        [answer.last_s for answer in flat],
        sum(answer.num_chunks for answer in flat),
    )


@dataclass(frozen=True)
class AnswerTiming:
    """Holds one answer's times, counted from its request."""

    first_s: float
    last_s: float
    num_chunks: int


async def _run_stream(client: Client, traffic: Traffic, prompts: list[tuple[int, ...]]) -> list[AnswerTiming]:
    return [await _time_answer(client, traffic, prompt) for prompt in prompts]


async def _time_answer(client: Client, traffic: Traffic, prompt: tuple[int, ...]) -> AnswerTiming:
    began = time.perf_counter()
    pieces: list[float] = []
    async for num_tokens in client.ask(traffic, prompt):
        now = time.perf_counter()
        if num_tokens is None:
            pieces.append(now - began)
        elif num_tokens != traffic.canvas:
            raise RuntimeError(f"an answer has {num_tokens} tokens, but its canvas has {traffic.canvas}")
    return AnswerTiming(pieces[0], time.perf_counter() - began, len(pieces))
