"""Turn a client's call into a request to the workers: prompt, shared context, suffix and canvas."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.errors import RequestError
from cluster.generation.catalogue import ModelCatalogue
from cluster.generation.contexts.editing import ContextService
from cluster.generation.encoding import TextEncoder
from cluster.generation.events import ContextChoice
from cluster.generation.tokenization import EncodedPrompt, Prompt, length_of
from workers.api import ContextEpoch, ContextRead, DecodingParams, GenerateRequest

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"


@dataclass(frozen=True)
class GenerationCall:
    """Describes a client's call to generate text."""

    request_id: str
    """Unique over all requests."""
    prompt: Prompt
    suffix: str = ""
    """Text that follows what is generated."""
    model: str | None = None
    """None: the model that is served."""
    max_tokens: int | None = None
    """Canvas length; None: the default, or less if the context length leaves less room."""
    params: DecodingParams = field(default_factory=DecodingParams)
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    context: ContextChoice | None = None
    """The shared context whose content the prompt follows."""


def fill_canvas(params: DecodingParams, max_tokens: int | None) -> DecodingParams:
    """Return parameters with which no answer ends before its canvas of `max_tokens` does. Raises RequestError."""
    if max_tokens is None:
        raise RequestError("ignore_eos fills the whole canvas: give its length as max_tokens", param="ignore_eos")
    return replace(params, min_tokens=max_tokens)


@dataclass(frozen=True)
class ResolvedPrompt:
    """Holds token ids, and the shared context whose content they begin with."""

    encoded: EncodedPrompt
    context: ContextRead | None = None


class RequestBuilder:
    """Checks a client's call, tokenizes its prompt and makes a request to the workers from it."""

    def __init__(
        self, catalogue: ModelCatalogue, encoder: TextEncoder, contexts: ContextService, max_tokens: int
    ) -> None:
        """Build requests for the model in `catalogue`; `max_tokens` is the canvas of a call that names none."""
        self._catalogue, self._encoder, self._contexts = catalogue, encoder, contexts
        self._max_tokens = max_tokens

    async def build(self, call: GenerationCall) -> GenerateRequest:
        """Return the request for `call`. Raises ModelNotFoundError, NotReadyError and RequestError."""
        info = await self._catalogue.model()
        self._catalogue.check(call.model)
        prompt = await self._resolve_prompt(call)
        suffix = await self._encoder.run(len(call.suffix), lambda tokenizer: tokenizer.encode_suffix(call.suffix))
        if not (prompt.encoded.token_ids or suffix):
            raise RequestError("the prompt is empty: it must hold at least one token", param="prompt")
        num_given = len(prompt.encoded.token_ids) + len(suffix)
        return GenerateRequest(
            request_id=call.request_id,
            token_ids=prompt.encoded.token_ids,
            max_tokens=self._canvas_length(call.max_tokens, num_given, info.context_length),
            prefixes=prompt.encoded.candidates(info.fingerprint, call.cache_salt),
            params=call.params,
            suffix=suffix,
            context=prompt.context,
        )

    async def _resolve_prompt(self, call: GenerationCall) -> ResolvedPrompt:
        """Encode the prompt; if it follows a shared context, put the context's newest content before it."""
        length = length_of(call.prompt)
        if call.context is None:
            return ResolvedPrompt(await self._encoder.run(length, lambda tokenizer: tokenizer.encode(call.prompt)))
        context = await self._contexts.read_to_generate(call.context.id, call.cache_salt)
        num_tokens, at = len(context.token_ids), ContextEpoch(context.id, context.epoch)
        behind = await self._encoder.run(
            length, lambda tokenizer: tokenizer.encode_after_context(call.prompt, num_tokens)
        )
        whole = EncodedPrompt(
            context.token_ids + behind.token_ids, (num_tokens, *(num_tokens + length for length in behind.boundaries))
        )
        return ResolvedPrompt(whole, ContextRead(at, num_tokens, call.context.mode, call.context.max_staleness))

    def _canvas_length(self, max_tokens: int | None, num_given: int, context_length: int) -> int:
        room = context_length - num_given
        if room < 1:
            raise RequestError(
                f"the prompt of {num_given} tokens leaves no room for an answer in the model's context length of "
                f"{context_length}: shorten it",
                param="prompt" if max_tokens is None else "max_tokens",
                code=CONTEXT_LENGTH_EXCEEDED,
            )
        canvas = min(self._max_tokens, room) if max_tokens is None else max_tokens
        if canvas > room:
            raise RequestError(
                f"max_tokens of {canvas} and {num_given} given tokens exceed the model's context length of "
                f"{context_length}: ask for at most {room}, or shorten the prompt",
                param="max_tokens",
                code=CONTEXT_LENGTH_EXCEEDED,
            )
        return canvas
