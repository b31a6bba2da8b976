"""Declares the settings that `benchmarks.fidelity` measures: policies, block lengths, reuse depths and cuts."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.drive import POLICIES
from cache_service.core.hashing import prefix_keys
from workers.api import DecodingParams, GenerateRequest, PrefixCandidate
from workers.bicache.cut import choose_cut
from workers.bicache.depth import DepthTable, ratio_percent
from workers.config import BiCacheConfig
from workers.models.bundle import model_directory
from workers.models.factbook.samples import CANVAS, ConversationSample

NUM_STEPS = 16
Load = Literal["questions", "conversations"]


@dataclass(frozen=True)
class Blocks:
    """Sets a block's length, and the number of steps between two refreshes."""

    length: int
    refresh_interval: int


ONE_BLOCK = Blocks(CANVAS, NUM_STEPS)
EIGHT_BLOCKS = Blocks(CANVAS // 8, NUM_STEPS // 8)


@dataclass(frozen=True)
class Setting:
    """Describes how one row is measured; without a depth the profile's own applies."""

    name: str
    params: DecodingParams
    blocks: Blocks = ONE_BLOCK
    depth: int | DepthTable | None = None
    load: Load = "questions"
    cut_share: float = BiCacheConfig.cut_share

    @property
    def depth_name(self) -> str:
        """Return `profile`, `published` for the published rule's table, or the fixed depth."""
        if isinstance(self.depth, DepthTable):
            return "published"
        return "profile" if self.depth is None else str(self.depth)

    @property
    def baseline(self) -> tuple[Load, Blocks]:
        """Return the load and the blocks by which to find the setting of policy `none` to compare with."""
        return self.load, self.blocks

    def make_request(self, turn: ConversationSample, request_id: str, fingerprint: str) -> GenerateRequest:
        """Make the request that asks the question of one turn."""
        keys = prefix_keys(fingerprint, "", turn.token_ids, turn.boundaries)
        prefixes = tuple(map(PrefixCandidate, turn.boundaries, keys))
        cut = choose_cut(prefixes, self.cut_share)
        params = self._decoding(ratio_percent(cut.num_tokens if cut else 0, len(turn.token_ids) + CANVAS))
        return GenerateRequest(request_id, tuple(turn.token_ids), CANVAS, prefixes, params)

    def _decoding(self, ratio: int) -> DecodingParams:
        """Return the parameters of a request whose prefix has this ratio, in percent."""
        depth = self.depth.lookup(ratio) if isinstance(self.depth, DepthTable) else self.depth
        return replace(
            self.params,
            num_steps=NUM_STEPS,
            block_length=self.blocks.length,
            refresh_interval=self.blocks.refresh_interval,
            reuse_depth=depth,
        )


ONE_BLOCK_POLICIES = ("prefix-naive", "bicache", "dual", "bicache-dual", "lean")
EIGHT_BLOCKS_POLICIES = ("dual", "bicache-dual", "lean", "lean+anchors", "lean+skip-refresh")
BESIDE_NONE = tuple(name for name in POLICIES if name != "none")
CONVERSATION_POLICIES = ("bicache", "lean")
NOT_QUICK = ("dual", "bicache-dual", "lean+anchors")
SWEEP = (0, 1, 2, 4, 6, 8, 10)
CUT_SHARES = (0.5, 0.75, 1.0)
MODELS = ["factbook", "factbook-plain"]


def settings_of(name: str, *, policies: Sequence[str], sweep: bool) -> list[Setting]:
    """Return the settings of one model; policy `none` comes first for each load and block length."""
    settings = []
    for blocks, known in ((ONE_BLOCK, ONE_BLOCK_POLICIES), (EIGHT_BLOCKS, EIGHT_BLOCKS_POLICIES)):
        settings.append(Setting("none", POLICIES["none"], blocks))
        settings += [Setting(policy, POLICIES[policy], blocks) for policy in known if policy in policies]
    if sweep:
        profile = jsonlib.loads((model_directory(name) / "depth_table.json").read_text())
        published = DepthTable({int(ratio): depth for ratio, depth in profile["published_rule"].items()})
        settings += [Setting("bicache", POLICIES["bicache"], depth=depth) for depth in (published, *SWEEP)]
    chats: Load = "conversations"
    settings.append(Setting("none", POLICIES["none"], load=chats))
    settings += [
        Setting(policy, POLICIES[policy], load=chats) for policy in CONVERSATION_POLICIES if policy in policies
    ]
    if sweep:
        lean = POLICIES["lean"]
        settings += [Setting("lean", lean, depth=depth, load=chats) for depth in SWEEP]
        settings += [Setting("lean", lean, load=chats, cut_share=share) for share in CUT_SHARES]
    return settings
