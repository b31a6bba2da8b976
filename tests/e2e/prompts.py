"""Fact sheets and questions; a sheet of its own for each test keeps their cached prefixes apart."""

from __future__ import annotations

from typing import Any

SHEET = (
    "Mira is 34, lives in Oslo and has a fox. Tobin is 29, lives in Lima and has a parrot. "
    "Ada is 41, lives in London and has a cat. Linus is 52, lives in Helsinki and has a penguin."
)
ANSWERS = {
    "Where does Mira live?": "Oslo",
    "How old is Tobin?": "29",
    "Who has a penguin?": "Linus",
    "Who is older, Mira or Tobin?": "Mira",
}


def sheet(name: str) -> str:
    """Return a sheet about `name` and others that no other test uses."""
    return f"{name} is 34, lives in Oslo and has a fox. {SHEET}"


def chat(system: str, question: str = "Where does Ada live?") -> list[Any]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def busy(num_tokens: int) -> dict[str, Any]:
    """A request that takes one pass over everything for each of its tokens, and doesn't end before them."""
    options = {"steps": num_tokens, "block_length": num_tokens, "min_tokens": num_tokens, "policy": "none"}
    return {"max_tokens": num_tokens, "diffusion": options}


LONG, ENDLESS = busy(96), busy(700)
