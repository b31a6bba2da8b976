from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.drive import Platform, drive
from cache_service.core.hashing import prefix_keys
from workers.api import DecodingParams, GenerateRequest, PrefixCandidate
from workers.models.bundle import model_directory
from workers.models.factbook.samples import evaluation_samples
from workers.scheduler.policy import POLICIES

CPU = torch.device("cpu")


def requests(fingerprint: str, params: list[DecodingParams]) -> list[GenerateRequest]:
    """Two questions on each of several sheets, with each of `params`."""
    tokenizer = Tokenizer.from_file(str(model_directory("factbook") / "tokenizer.json"))
    found = []
    for sheet, sample in enumerate(evaluation_samples(tokenizer, 3)):
        for index, param in enumerate(params * 2):
            token_ids = (*sample.prefix, *sample.suffixes[0])
            num_prefix = len(sample.prefix)
            [key] = prefix_keys(fingerprint, "", token_ids, [num_prefix])
            candidate = PrefixCandidate(num_prefix, key)
            found.append(GenerateRequest(f"{sheet}-{index}", token_ids, 32, (candidate,), param))
    return found


def test_answers_equal_the_cpus(cuda: torch.device) -> None:
    """All policies in one batch, token for token in fp32."""
    params = [DecodingParams(num_steps=16, block_length=8, policy=policy) for policy in POLICIES]
    params.append(DecodingParams(num_steps=16, block_length=8, refresh_interval=4, policy="lean", anchors=0.5))
    params.append(DecodingParams(num_steps=16, block_length=8, unmasking="threshold"))
    answers = []
    for device in (cuda, CPU):
        platform = Platform(device, torch.float32)
        loaded = platform.load("factbook")
        answers.append(drive(platform.build_engine(loaded, batch=24), requests(loaded.fingerprint, params)))
    ours, theirs = answers
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in theirs]
    assert [answer.usage for answer in ours] == [answer.usage for answer in theirs]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_result_never_depends_on_its_batch(cuda: torch.device, policy: str) -> None:
    platform = Platform(cuda, torch.float32)
    loaded = platform.load("factbook")
    asked = requests(loaded.fingerprint, [DecodingParams(num_steps=16, block_length=8, policy=policy)])
    together = drive(platform.build_engine(loaded, batch=16), asked)
    alone = [answer for request in asked for answer in drive(platform.build_engine(loaded, batch=1), [request])]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_recorded_steps_equal_eager_ones(cuda: torch.device) -> None:
    """In fp32, bit for bit would be too much to ask of other tile sizes; the tokens are the same."""
    params = [DecodingParams(num_steps=16, block_length=8, policy=policy) for policy in POLICIES]
    platform = Platform(cuda, torch.float32)
    loaded = platform.load("factbook")
    for batch in (1, 3, 24):
        answers = []
        for warm in (True, False):
            engine = platform.build_engine(loaded, batch=batch)
            sizes = list(engine.warm_up()) if warm else []
            assert bool(sizes) == warm
            answers.append(drive(engine, requests(loaded.fingerprint, params)))
        assert answers[0] == answers[1]
