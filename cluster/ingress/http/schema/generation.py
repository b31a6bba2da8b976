"""Define OpenAI's request bodies, as far as a diffusion model can honour them.

A field that would change the answer and can't be honoured is refused by name unless it has its neutral value; a
field that changes nothing is accepted; an unknown one is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.types import ContextId
from cluster.errors import RequestError
from cluster.generation.events import ContextChoice
from cluster.generation.prompts import GenerationCall
from cluster.generation.stops import MAX_STOP_LENGTH, MAX_STOPS
from cluster.generation.tokenization import Conversation, Message, Prompt, TextPrompt, TokenPrompt
from cluster.ingress.http.schema.declared import SEED_PARAMETER, Body, declared_field, options_body
from workers.api import PARAMETERS, ContextMode, DecodingParams


def only(*neutral: Any, reason: str) -> AfterValidator:
    """Return a validator for a field that accepts only its neutral values."""

    def check(value: Any) -> Any:
        if value is not None and value not in neutral:
            raise ValueError(f"{reason}; leave it out")
        return value

    return AfterValidator(check)


Ignored = Any
NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Stop = NonEmpty | Annotated[list[NonEmpty], Field(max_length=MAX_STOPS)]


class DiffusionBody(options_body("DiffusionOptions", is_openai=False)):  # type: ignore[misc]
    """Holds the parameters of denoising, which OpenAI's API lacks."""

    seed: int | None = declared_field(SEED_PARAMETER)
    """Same as the body's own `seed`; takes precedence over it."""


class ContextBody(Body):
    """Names a shared context as the prefix of a generation."""

    id: NonEmpty
    mode: Literal["pin", "follow"] = "pin"
    max_staleness: int = Field(default=0, ge=0, le=MAX_STALENESS)

    def to_choice(self) -> ContextChoice:
        return ContextChoice(ContextId(self.id), ContextMode(self.mode), self.max_staleness)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class SamplingBody(options_body("SamplingOptions", is_openai=True)):  # type: ignore[misc]
    """Holds the model, the tenant, and the parameters by which tokens are chosen."""

    model: str | None = None
    stream: bool | None = None
    cache_salt: str | None = None
    diffusion: DiffusionBody | None = None

    def params(self) -> DecodingParams:
        """Return the decoding parameters. Raises RequestError for what only the whole body shows to be wrong."""
        options = self.diffusion or DiffusionBody()
        values = {
            parameter.name: getattr(self if parameter.is_openai else options, parameter.client_name)
            for parameter in PARAMETERS
        }
        values["seed"] = self.seed if options.seed is None else options.seed
        values["logit_bias"] = tuple((self.logit_bias or {}).items())
        return DecodingParams(**{name: value for name, value in values.items() if value is not None})


class GenerationBody(SamplingBody):
    """Holds what both endpoints share."""

    max_tokens: int | None = Field(default=None, ge=1)
    stop: Stop | None = None
    ignore_eos: bool | None = None
    """Fill the whole canvas: vLLM's parameter, which load generators send."""
    stream_options: StreamOptions | None = None
    context: ContextBody | None = None

    n: Annotated[Any, only(1, reason="one choice a request is supported")] = None
    frequency_penalty: Annotated[Any, only(0, reason="penalties are not supported")] = None
    presence_penalty: Annotated[Any, only(0, reason="penalties are not supported")] = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None

    def to_call(self, request_id: str) -> GenerationCall:
        """Return the described call. Raises RequestError for what only the whole body shows to be wrong."""
        stop = self.stop or []
        return GenerationCall(
            request_id=request_id,
            prompt=self.to_prompt(),
            suffix=self.suffix_text(),
            model=self.model,
            max_tokens=self.canvas(),
            params=self.params(),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            cache_salt=self.cache_salt or "",
            context=self.context.to_choice() if self.context else None,
        )

    def to_prompt(self) -> Prompt:
        raise NotImplementedError

    def suffix_text(self) -> str:
        """Return the text that follows the answer."""
        return ""

    def canvas(self) -> int | None:
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _whole_canvas(self) -> int:
        canvas = self.canvas()
        if canvas is None:
            raise RequestError("ignore_eos fills the whole canvas: give its length as max_tokens", param="ignore_eos")
        return canvas

    def params(self) -> DecodingParams:
        asked = super().params()
        return replace(asked, min_tokens=self._whole_canvas()) if self.ignore_eos else asked


class TextPart(Body):
    type: Literal["text"]
    text: str


class MessageBody(Body):
    """Holds one turn. Fields of other kinds of turns (tool calls, audio) aren't supported."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Ignored = None
    refusal: Annotated[Any, only(reason="refusals are not supported")] = None
    tool_calls: Annotated[Any, only([], reason="tools are not supported")] = None

    def to_message(self) -> Message:
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return Message("system" if self.role == "developer" else self.role, "".join(parts))


class ChatBody(GenerationBody):
    """Describes the body of POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: Annotated[Any, only([], reason="tools are not supported")] = None
    tool_choice: Annotated[Any, only("none", "auto", reason="tools are not supported")] = None
    functions: Annotated[Any, only([], reason="functions are not supported")] = None
    function_call: Annotated[Any, only("none", "auto", reason="functions are not supported")] = None
    logprobs: Annotated[Any, only(False, reason="log probabilities are not supported")] = None
    top_logprobs: Annotated[Any, only(0, reason="log probabilities are not supported")] = None
    response_format: Annotated[Any, only({"type": "text"}, reason="only text answers are supported")] = None
    modalities: Annotated[Any, only(["text"], reason="only text answers are supported")] = None
    audio: Annotated[Any, only(reason="only text answers are supported")] = None
    prediction: Annotated[Any, only(reason="predicted outputs are not supported")] = None
    reasoning_effort: Annotated[Any, only("none", reason="the model doesn't reason apart")] = None
    web_search_options: Annotated[Any, only(reason="web search is not supported")] = None
    parallel_tool_calls: Ignored = None
    verbosity: Ignored = None

    def to_prompt(self) -> Prompt:
        return Conversation(tuple(message.to_message() for message in self.messages))

    def canvas(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionBody(GenerationBody):
    """Describes the body of POST /v1/completions and /v1/fim/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: Annotated[Any, only(False, reason="echoing the prompt is not supported")] = None
    suffix: str | None = None
    best_of: Annotated[Any, only(1, reason="one choice a request is supported")] = None
    logprobs: Annotated[Any, only(reason="log probabilities are not supported")] = None

    def suffix_text(self) -> str:
        return self.suffix or ""

    def to_prompt(self) -> Prompt:
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise RequestError("a request takes one prompt: send one request for each", param="prompt")
            prompt = prompt[0]
        if isinstance(prompt, str):
            return TextPrompt(prompt)
        return TokenPrompt(tuple(token_id for token_id in prompt if isinstance(token_id, int)))
