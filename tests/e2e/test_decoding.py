"""Infilling and the decoding rules of a running system, through OpenAI's own client and the generated stubs."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.e2e.prompts import SHEET, chat
from tests.e2e.system import System

pytestmark = pytest.mark.system

BEFORE, BEHIND = "Mira is 34, lives in Oslo and has a", " Tobin is 29, lives in Lima and has a parrot."

PUNCTUATION = (20, 22)
"""The tokenizer's comma and full stop."""


def ask(client: OpenAI, system: System, **more: Any) -> Any:
    return client.chat.completions.create(model=system.model, messages=chat(SHEET), max_tokens=16, **more)


def done(completion: Any) -> dict[str, Any]:
    report: dict[str, Any] = completion.model_extra["diffusion"]
    return report


def test_a_suffix_is_filled_up_to(system: System, client: OpenAI) -> None:
    def fill(**more: Any) -> Any:
        return client.completions.create(model=system.model, prompt=BEFORE, max_tokens=4, **more)

    between, alone = fill(suffix=BEHIND), fill()
    pieces = list(fill(suffix=BEHIND, stream=True))

    assert between.usage.prompt_tokens > alone.usage.prompt_tokens
    assert "".join(piece.choices[0].text for piece in pieces) == between.choices[0].text


def test_fill_in_the_middle_is_the_same(system: System, client: OpenAI) -> None:
    fim = client.with_options(base_url=f"{system.url}/v1/fim")
    middle = fim.completions.create(model=system.model, prompt=BEFORE, suffix=BEHIND, max_tokens=4)
    plain = client.completions.create(model=system.model, prompt=BEFORE, suffix=BEHIND, max_tokens=4)

    assert middle.choices[0].text == plain.choices[0].text


def test_bias_and_top_p_are_used(system: System, client: OpenAI) -> None:
    pushed = ask(client, system, logit_bias={str(token): 100 for token in PUNCTUATION})
    warm = [ask(client, system, temperature=2, top_p=1e-9, seed=seed) for seed in (1, 2)]
    cold = ask(client, system)

    assert set(pushed.choices[0].message.content) <= set(",. ")
    assert {answer.choices[0].message.content for answer in warm} == {cold.choices[0].message.content}


@pytest.mark.parametrize("unmasking", ["random", "entropy", "topk_margin", "maskgit_plus", "origin"])
@pytest.mark.parametrize("timetable", ["quota", "dream"])
def test_every_rule_keeps_to_its_steps(system: System, client: OpenAI, unmasking: str, timetable: str) -> None:
    options = {"unmasking": unmasking, "timetable": timetable, "steps": 6, "block_length": 16, "min_tokens": 16}
    answer = ask(client, system, seed=1, extra_body={"diffusion": options})

    assert (done(answer)["steps"], answer.usage.completion_tokens) == (6, 16)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"unmasking": "threshold", "threshold": 0.0}, 1),
        ({"unmasking": "threshold", "threshold": 0.0, "block_length": 4}, 4),
        ({"unmasking": "factor", "factor": 0.0, "steps": 5}, 5),
        ({"unmasking": "factor", "factor": 100.0}, 1),
    ],
)
def test_confidence_sets_the_pace(system: System, client: OpenAI, options: dict[str, Any], steps: int) -> None:
    answer = ask(client, system, extra_body={"diffusion": {"block_length": 16, "min_tokens": 16} | options})

    assert done(answer)["steps"] == steps


def test_guidance_costs_a_second_forward(system: System, client: OpenAI) -> None:
    report = done(ask(client, system, extra_body={"diffusion": {"guidance": 1.0, "steps": 8}}))
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, system, extra_body={"diffusion": {"guidance": 1.0, "policy": "lean"}})

    assert report["policy"] == "none"
    assert report["forwards"] == 2 * report["steps"]
    assert refused.value.param == "guidance"


def test_top_k_of_one_is_greedy_at_any_temperature(system: System, client: OpenAI) -> None:
    warm = ask(client, system, temperature=2, seed=1, extra_body={"diffusion": {"top_k": 1}})

    assert warm.choices[0].message.content == ask(client, system).choices[0].message.content


def test_remasking_takes_no_more_steps(system: System, client: OpenAI) -> None:
    options = {"remask": 2, "steps": 8, "min_tokens": 16, "block_length": 16}
    answer = ask(client, system, extra_body={"diffusion": options})

    assert (done(answer)["steps"], answer.usage.completion_tokens) == (8, 16)


def test_a_stub_has_the_same_options(stub: InferenceStub, system: System, client: OpenAI) -> None:
    options = {"unmasking": "entropy", "timetable": "dream", "steps": 6, "min_tokens": 5}
    there = stub.Generate(
        pb.GenerateRequest(
            text=BEFORE,
            suffix=BEHIND,
            max_tokens=8,
            temperature=0.8,
            top_p=0.9,
            seed=3,
            logit_bias={20: -100.0},
            diffusion=pb.DiffusionOptions(**options),
        )
    )
    here = client.completions.create(
        model=system.model,
        prompt=BEFORE,
        suffix=BEHIND,
        max_tokens=8,
        temperature=0.8,
        top_p=0.9,
        seed=3,
        logit_bias={"20": -100},
        extra_body={"diffusion": options},
    )

    assert there.text == here.choices[0].text
    assert here.usage is not None
    assert here.usage.completion_tokens >= 5
