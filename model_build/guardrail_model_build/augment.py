"""Makes rows out of rows: what a guard meets and labelled data lacks.

A prompt after harmless small talk is as unsafe as without it, and a harmless answer is harmless
at every point on its way: both follow from labels that there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from guardrail_sdk import Message
from guardrail_sdk.evaluation import Row

_SURE = 0.6
"""An unsafe answer is unsafe by now for certain, once this share of it is there."""
_LONG = 80
"""Characters from which an answer is worth cutting."""
_EXCHANGE = 400
"""The most characters of an exchange that is put before a prompt."""


def rank(text: str) -> float:
    """Return a number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def augmented(rows: Sequence[Row], context_share: float, prefix_share: float) -> list[Row]:
    """Return `rows` with prompts after exchanges and with unfinished answers, chosen by id.

    Args:
        rows: Labelled rows.
        context_share: Share of the single prompts that get a harmless exchange of another row
            before them; they take the place of the bare ones.
        prefix_share: Share of the answers that are added a second time, cut.
    """
    exchanges = [row.messages for row in rows if _is_exchange(row)]
    found: list[Row] = []
    for row in rows:
        alone = row.target == "user" and len(row.messages) == 1
        if exchanges and alone and rank("context" + row.id) < context_share:
            before = exchanges[int(rank("exchange" + row.id) * len(exchanges))]
            row = row.model_copy(update={"messages": (*before, *row.messages)})
        found.append(row)
        if row.target == "assistant" and rank("prefix" + row.id) < prefix_share:
            found += _unfinished(row)
    return found


def _is_exchange(row: Row) -> bool:
    length = sum(len(message.content) for message in row.messages)
    return (
        row.target == "assistant"
        and row.unsafe is False
        and len(row.messages) == 2
        and length <= _EXCHANGE
    )


def _unfinished(row: Row) -> Iterator[Row]:
    """Yield `row` with its last message cut short, unless its label could change by that."""
    *before, answer = row.messages
    share = 0.1 + 0.85 * rank("cut" + row.id)
    if row.unsafe:
        share = _SURE + (1 - _SURE) * share
    text = answer.content[: int(share * len(answer.content))].rstrip()
    if row.unsafe is None or len(answer.content) < _LONG or not text:
        return
    messages = (*before, Message(role="assistant", content=text))
    yield row.model_copy(update={"id": f"{row.id}-prefix", "messages": messages})
