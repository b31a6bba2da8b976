"""What a request costs at LLaDA-8B's dimensions, counted by torch on the meta device, against the cost model.

The model charges published decoders for logits that nobody reads; the engine computes those of masked positions alone.
So its layers are counted as they run, and the head's rows are put at what the cost model assumes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dimensions import LLADA_8B
from tests.support.requirements import SHARED, how_to_share
from tests.unit.workers.tiny import request_of
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.decoding.decision import Decision
from workers.engine.factory import create_engine
from workers.models.layers import Transformer
from workers.models.loader import LoadedModel
from workers.scheduler.plan import ScheduledPass, StepResult

COST_MODEL = SHARED / "tools" / "cost_model.py"
if not COST_MODEL.exists():
    pytest.skip(how_to_share(COST_MODEL), allow_module_level=True)
META, USER, CANVAS, STEPS, BLOCK = torch.device("meta"), 64, 256, 128, 32
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def cost_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cost_model", COST_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    with META:
        model = Transformer(LLADA_8B).to(torch.bfloat16)
    return LoadedModel("meta", LLADA_8B, model, "meta", None)


class Counter:
    """Runs one request, its decisions made up, and counts the FLOPs of its passes; a hit, as in the cost model."""

    def __init__(self, loaded: LoadedModel, prefix: int, policy: str) -> None:
        self.loaded, self.prefix, self.policy = loaded, prefix, policy
        self.engine = create_engine(
            loaded,
            engine=EngineConfig(),
            kv=KVConfig(pool_bytes=1 << 34, entry_bytes=1 << 33),
            bicache=BiCacheConfig(probe_positions=0),
            replica="meta",  # type: ignore[arg-type]
            device=META,
            dtype=torch.bfloat16,
        )
        self.flops_of_shape: dict[tuple[int, int], int] = {}
        self.layer_flops = self.logit_rows = self.assumed_rows = 0

    def run(self, assumed_rows: Callable[[ScheduledPass], int]) -> int:
        """FLOPs in all, the head taken at `assumed_rows` rows a pass."""
        prompt = [1] * (self.prefix + USER)
        self.engine.submit(
            request_of(prompt, CANVAS, prefixes=[self.prefix], policy=self.policy, num_steps=STEPS, block_length=BLOCK)
        )
        while self.engine.has_work:
            plan = self.engine.scheduler.schedule()
            decisions = {scheduled.sequence.id: self.decide(scheduled) for scheduled in plan.passes}
            self.assumed_rows += sum(map(assumed_rows, plan.passes))
            self.engine.scheduler.apply(plan, StepResult(decisions))
        return self.layer_flops + self.assumed_rows * 2 * LLADA_8B.hidden_size * LLADA_8B.vocab_size

    def decide(self, scheduled: ScheduledPass) -> Decision:
        """Count a pass (passes of one shape cost the same), and commit the leftmost positions."""
        shape = (len(scheduled.run.rows), len(scheduled.run.deep))
        if shape not in self.flops_of_shape:
            forward = self.engine.runner.forward
            with FlopCounterMode(display=False) as count:
                forward.run(forward.assemble([scheduled]))
            self.flops_of_shape[shape] = count.get_total_flops()
        self.layer_flops += self.flops_of_shape[shape]
        masked = scheduled.sequence.canvas.masked(scheduled.run.decode)
        self.logit_rows += len(masked)
        chosen = tuple(masked[: scheduled.sequence.portion().count])
        return Decision(chosen, (1,) * len(chosen))


def whole(scheduled: ScheduledPass) -> int:
    return scheduled.sequence.task.total


def block_or_whole(scheduled: ScheduledPass) -> int:
    return BLOCK if len(scheduled.run.rows) == BLOCK else whole(scheduled)


def prefix_and_block(scheduled: ScheduledPass) -> int:
    return scheduled.sequence.allocation.geometry.prefix + BLOCK if scheduled.run.decode else whole(scheduled)


@pytest.mark.parametrize("prefix", [512, 2048])
@pytest.mark.parametrize(
    ("policy", "name", "assumed_rows"),
    [
        ("none", "no cache", whole),
        ("dual", "fast-dllm dual", block_or_whole),
        ("bicache", "bicache as published", whole),
        ("bicache-dual", "bicache+dual as published", prefix_and_block),
        ("lean", "lean", lambda _: BLOCK),
    ],
)
def test_flops_are_the_cost_models(
    cost_model: ModuleType,
    loaded: LoadedModel,
    prefix: int,
    policy: str,
    name: str,
    assumed_rows: Callable[[ScheduledPass], int],
) -> None:
    counter = Counter(loaded, prefix, policy)
    flops = counter.run(assumed_rows)
    _, expected = cost_model.policies(prefix)
    assert flops == pytest.approx(expected[name], rel=TOLERANCE)
    assert counter.logit_rows <= STEPS * CANVAS
    assert counter.logit_rows <= counter.assumed_rows
