"""Define OpenAI's request bodies, as far as a diffusion model can honour them.

The fields that are honoured stand here, and those that change nothing in `neutral`. Any other field is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.types import ContextId
from cluster.generation.events import ContextChoice
from cluster.generation.prompts import GenerationCall, fill_canvas
from cluster.generation.stops import MAX_STOP_LENGTH, MAX_STOPS
from cluster.generation.tokenization import Conversation, Prompt, TextPrompt, TokenPrompt
from cluster.ingress.http.schema.declared import SEED_PARAMETER, Body, declared_field, options_body
from cluster.ingress.http.schema.messages import MessageBody
from cluster.ingress.http.schema.neutral import Ignored, NeutralChatFields, NeutralCompletionFields, NeutralFields
from cluster.ingress.http.shapes import UsageReports
from workers.api import PARAMETERS, ContextMode, DecodingParams

Ids = Annotated[list[int], Field(fail_fast=True)]
NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
StopText = Annotated[str, StringConstraints(max_length=MAX_STOP_LENGTH)]
Stop = StopText | Annotated[list[NonEmpty], Field(max_length=MAX_STOPS, fail_fast=True)]


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
    """Says what the chunks of a stream hold beside the answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """Report the usage so far in every chunk, if usage is included: vLLM's parameter, which load generators send."""
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


class GenerationBody(SamplingBody, NeutralFields):
    """Holds what both endpoints share."""

    max_tokens: int | None = Field(default=None, ge=1)
    stop: Stop | None = None
    ignore_eos: bool | None = None
    """Fill the whole canvas: vLLM's parameter, which load generators send."""
    top_k: int | None = Field(default=None, ge=-1)
    """The same as `diffusion.top_k`, which takes precedence, at vLLM's path; 0 and -1 mean all tokens."""
    min_tokens: int | None = Field(default=None, ge=0)
    """The same as `diffusion.min_tokens`, which takes precedence, at vLLM's path."""
    stream_options: StreamOptions | None = None
    context: ContextBody | None = None

    def to_call(self, request_id: str) -> GenerationCall:
        """Return the described call. Raises RequestError for what only the whole body shows to be wrong."""
        stop = self.stop or ()
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

    def paths(self) -> dict[str, str]:
        """Return where this body wrote fields that may stand at several paths."""
        written = self.diffusion.model_fields_set if self.diffusion else frozenset()
        aliases = ("top_k", "min_tokens")
        return {f"diffusion.{name}": name for name in aliases if getattr(self, name) and name not in written}

    def to_prompt(self) -> Prompt:
        raise NotImplementedError

    def suffix_text(self) -> str:
        """Return the text that follows the answer."""
        return ""

    def canvas(self) -> int | None:
        return self.max_tokens

    @property
    def usage_reports(self) -> UsageReports:
        """Return which chunks of a stream report usage."""
        options = self.stream_options or StreamOptions()
        if not options.include_usage:
            return UsageReports.NEVER
        return UsageReports.ALWAYS if options.continuous_usage_stats else UsageReports.LAST

    def params(self) -> DecodingParams:
        asked = super().params()
        if asked.top_k is None and self.top_k and self.top_k > 0:
            asked = replace(asked, top_k=self.top_k)
        if self.ignore_eos:
            return fill_canvas(asked, self.canvas())
        return replace(asked, min_tokens=asked.min_tokens or self.min_tokens or 0)


class ChatBody(GenerationBody, NeutralChatFields):
    """Describes the body of POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    def paths(self) -> dict[str, str]:
        longest = {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        return super().paths() | longest | {"prompt": "messages"}

    def to_prompt(self) -> Prompt:
        return Conversation(tuple(message.to_message() for message in self.messages))

    def canvas(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionBody(GenerationBody, NeutralCompletionFields):
    """Describes the body of POST /v1/completions and /v1/fim/completions."""

    prompt: str | Ids | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[Ids], Field(fail_fast=True)]
    suffix: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def one_prompt(cls, prompt: Any) -> Any:
        """Refuse several prompts, before any of them is read."""
        if isinstance(prompt, list) and len(prompt) > 1 and isinstance(prompt[0], str | list):
            raise ValueError("a request takes one prompt: send one request for each")
        return prompt

    def suffix_text(self) -> str:
        return self.suffix or ""

    def to_prompt(self) -> Prompt:
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return TextPrompt(prompt)
        return TokenPrompt(tuple(token_id for token_id in prompt if isinstance(token_id, int)))
