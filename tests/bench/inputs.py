"""What every subject reads: the same messages, as text and as the prompts that the SDK makes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from guardrail_sdk import Guard, Message, Policy
from guardrail_sdk._judge import Budget
from guardrail_sdk._layout import Layout
from guardrail_sdk._local import LocalModel
from guardrail_sdk.artifact import Artifact
from guardrail_sdk.testing import FakeModel

WINDOWS: Final = 64
STREAM_TOKENS: Final = 400
AT_ONCE_TOKENS: Final = 64
LEAST_AT_ONCE: Final = 16
_TEXT: Final = (
    "could you tell me how the ferries to the islands run on sundays in winter and whether my old "
    "neighbour may take her dog along when the weather turns so that we can plan our short trip"
)
_WORDS: Final = _TEXT.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One message to judge.

    Attributes:
        text: The message.
        rows: The prompts in which the SDK reads it: several windows if it is long.
    """

    text: str
    rows: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that is read of one model.

    Attributes:
        proof: Messages whose logits every subject must agree on.
        lengths: Messages by their tokens; no two are alike, since what was read is remembered.
        at_once: Messages that are read many at a time, by how many.
        growing: What there is of one answer each time that the SDK checks it: for those that
            read all of it again.
    """

    proof: list[Item]
    lengths: dict[str, list[Item]]
    at_once: dict[str, list[Item]]
    growing: list[Item]


def make(
    artifact: Artifact,
    lengths: Sequence[int],
    rounds: int,
    *,
    at_once: Sequence[int],
    stream: bool,
) -> Inputs:
    """Return the inputs of a model, the same every time.

    Args:
        artifact: The model, whose tokenizer and template are used.
        lengths: The messages' tokens.
        rounds: How many messages of each length.
        at_once: How many messages are in flight.
        stream: Whether there is a growing answer.
    """
    # This also lets the SDK choose its kernel, which it does once for a machine.
    layout = LocalModel(artifact)._parts().layout
    rng = random.Random(1)
    return Inputs(
        proof=[_item(layout, rng, 24) for _ in range(2)],
        lengths={
            str(length): [_item(layout, rng, length) for _ in range(rounds)] for length in lengths
        },
        at_once={
            str(count): [
                _item(layout, rng, AT_ONCE_TOKENS) for _ in range(max(count, LEAST_AT_ONCE))
            ]
            for count in at_once
        },
        growing=[_laid_out(layout, "assistant", text) for text in growing_texts()]
        if stream
        else [],
    )


def to_json(inputs: Inputs) -> dict[str, object]:
    """Return `inputs` as JSON values."""
    return asdict(inputs)


def from_json(found: Mapping[str, Any]) -> Inputs:
    """Return what `to_json` was given."""

    def items(values: list[dict[str, Any]]) -> list[Item]:
        return [Item(**value) for value in values]

    return Inputs(
        proof=items(found["proof"]),
        lengths={length: items(values) for length, values in found["lengths"].items()},
        at_once={count: items(values) for count, values in found["at_once"].items()},
        growing=items(found["growing"]),
    )


def answer_words(seed: int) -> list[str]:
    """Return the chunks of an answer of `STREAM_TOKENS` words, no two seeds' alike."""
    rng = random.Random(seed)
    words = [rng.choice(_WORDS) for _ in range(STREAM_TOKENS)]
    return [f"{word}{'.' if place % 14 == 13 else ''} " for place, word in enumerate(words)]


def growing_texts() -> list[str]:
    """Return an answer up to each place where the SDK's default policy checks it."""
    chunks = answer_words(0)
    model = FakeModel()

    async def chat(prompt: str) -> AsyncIterator[str]:
        for chunk in chunks:
            yield chunk

    async def read() -> None:
        async for _ in Guard(model, policy=Policy()).wrap(chat)("go on"):
            pass

    asyncio.run(read())
    whole = "".join(chunks)
    checked = [conversation[-1] for conversation in model.seen]
    texts = [message.content for message in checked if message.role == "assistant"]
    return [whole[: whole.index(text) + len(text)] for text in texts]


def _item(layout: Layout, rng: random.Random, tokens: int) -> Item:
    """Return a message of that many tokens, or the next number that whole words make."""
    counts = {word: layout._tokenizer.count(f" {word}", at_most=99) for word in _WORDS}
    words: list[str] = []
    left = tokens
    while left > 0:
        words.append(rng.choice(_WORDS))
        left -= counts[words[-1]]
    return _laid_out(layout, "user", " ".join(words))


def _laid_out(layout: Layout, role: str, text: str) -> Item:
    message = Message(role="assistant" if role == "assistant" else "user", content=text)
    rows = layout.rows([message], WINDOWS, Budget())
    return Item(text=text, rows=[list(row.ids) for row in rows])
