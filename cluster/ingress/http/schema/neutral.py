"""Declare the fields that clients send although they change nothing here.

Load generators, evaluation harnesses and client libraries send many fields of OpenAI's and vLLM's APIs by default. A
field that would change the answer is accepted with the values that ask for what is done anyway, and refused by name
with any other; a field that changes nothing is accepted with any value.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator

from cluster.ingress.http.schema.declared import EMPTY, Body


def only(*neutral: Any, reason: str) -> AfterValidator:
    """Return a validator for a field that accepts only its neutral values, and empty ones."""

    def check(value: Any) -> Any:
        if not any(is_same(value, accepted) for accepted in (*neutral, *EMPTY)):
            advice = f"leave it out, or send {json.dumps(neutral[0])}" if neutral else "leave it out"
            raise ValueError(f"{reason}; {advice}")
        return value

    return AfterValidator(check)


def is_same(value: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; unlike in Python, true is not 1."""
    return isinstance(value, bool) is isinstance(other, bool) and value == other


Ignored = Any
Penalty = Annotated[Any, only(0, reason="penalties are not supported")]
OneChoice = Annotated[Any, only(1, reason="one choice a request is supported")]
Unconstrained = Annotated[Any, only(reason="constrained answers are not supported")]
NO_BEAMS = "beam search is not supported"
NO_TOKEN_IDS = "token ids in the response are not supported"
NO_REASONING = "the model doesn't reason apart"
ONE_TEMPLATE = "another rendering than the chat template's is not supported"


class NeutralFields(Body):
    """Holds the fields without effect that both endpoints share."""

    n: OneChoice = None
    best_of: OneChoice = None
    echo: Annotated[Any, only(False, reason="echoing the prompt is not supported")] = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    repetition_penalty: Annotated[Any, only(1, reason="penalties are not supported")] = None
    length_penalty: Annotated[Any, only(1, reason=NO_BEAMS)] = None
    use_beam_search: Annotated[Any, only(False, reason=NO_BEAMS)] = None
    early_stopping: Annotated[Any, only(False, reason=NO_BEAMS)] = None
    min_p: Annotated[Any, only(0, reason="min_p is not supported")] = None
    stop_token_ids: Annotated[Any, only(reason="answers stop at texts, which `stop` names")] = None
    include_stop_str_in_output: Annotated[Any, only(False, reason="answers end before a stop string")] = None
    skip_special_tokens: Annotated[Any, only(True, reason="special tokens are left out of answers")] = None
    detokenize: Annotated[Any, only(True, reason="answers are text")] = None
    bad_words: Unconstrained = None
    allowed_token_ids: Unconstrained = None
    logits_processors: Unconstrained = None
    response_format: Annotated[
        Any, only({"type": "text"}, reason="only text answers without a schema are supported")
    ] = None
    structured_outputs: Unconstrained = None
    guided_json: Unconstrained = None
    guided_regex: Unconstrained = None
    guided_choice: Unconstrained = None
    guided_grammar: Unconstrained = None
    prompt_logprobs: Annotated[Any, only(False, reason="log probabilities are not supported")] = None
    logprob_token_ids: Annotated[Any, only(reason="log probabilities are not supported")] = None
    return_token_ids: Annotated[Any, only(False, reason=NO_TOKEN_IDS)] = None
    return_tokens_as_token_ids: Annotated[Any, only(False, reason=NO_TOKEN_IDS)] = None
    truncate_prompt_tokens: Annotated[Any, only(reason="prompts are never shortened")] = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    cache_prompt: Ignored = None
    priority: Ignored = None
    request_id: Ignored = None
    session_id: Ignored = None
    spaces_between_special_tokens: Ignored = None
    truncation_side: Ignored = None
    guided_decoding_backend: Ignored = None


class NeutralChatFields(NeutralFields):
    """Holds those of chats."""

    tools: Annotated[Any, only(reason="tools are not supported")] = None
    tool_choice: Annotated[Any, only("none", "auto", reason="tools are not supported")] = None
    functions: Annotated[Any, only(reason="functions are not supported")] = None
    function_call: Annotated[Any, only("none", "auto", reason="functions are not supported")] = None
    logprobs: Annotated[Any, only(False, reason="log probabilities are not supported")] = None
    top_logprobs: Annotated[Any, only(0, reason="log probabilities are not supported")] = None
    modalities: Annotated[Any, only(["text"], reason="only text answers are supported")] = None
    audio: Annotated[Any, only(reason="only text answers are supported")] = None
    prediction: Annotated[Any, only(reason="predicted outputs are not supported")] = None
    reasoning_effort: Annotated[Any, only("none", reason=NO_REASONING)] = None
    reasoning: Annotated[Any, only({"effort": "none"}, {"enabled": False}, reason=NO_REASONING)] = None
    thinking: Annotated[Any, only({"type": "disabled"}, reason=NO_REASONING)] = None
    enable_thinking: Annotated[Any, only(False, reason=NO_REASONING)] = None
    moderation: Annotated[Any, only(reason="moderation is not supported")] = None
    web_search_options: Annotated[Any, only(reason="web search is not supported")] = None
    documents: Annotated[Any, only(reason="documents beside the messages are not supported")] = None
    add_generation_prompt: Annotated[Any, only(True, reason=ONE_TEMPLATE)] = None
    continue_final_message: Annotated[Any, only(False, reason=ONE_TEMPLATE)] = None
    add_special_tokens: Annotated[Any, only(False, reason=ONE_TEMPLATE)] = None
    chat_template: Annotated[Any, only(reason=ONE_TEMPLATE)] = None
    chat_template_kwargs: Annotated[Any, only({"enable_thinking": False}, {"thinking": False}, reason=ONE_TEMPLATE)] = (
        None
    )

    parallel_tool_calls: Ignored = None
    verbosity: Ignored = None
    include_reasoning: Ignored = None
    separate_reasoning: Ignored = None
    stream_reasoning: Ignored = None


class NeutralCompletionFields(NeutralFields):
    """Holds those of completions."""

    logprobs: Annotated[Any, only(False, reason="log probabilities are not supported")] = None
    add_special_tokens: Annotated[
        Any, only(True, reason="the tokenizer decides which special tokens begin a prompt")
    ] = None
