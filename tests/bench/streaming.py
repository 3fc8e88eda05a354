"""A stream of 400 tokens under each mode: what the guard adds, and when the first text leaves.

The source yields a token every 20 ms, as a hosted model does, or at once, which shows the checks'
own cost. Without a guard, the first text leaves with the first token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from guardrail_sdk import CheckEvent, CheckResult, Guard, Hooks, Policy
from guardrail_sdk._policy import StreamMode

TOKENS = 400
SENTENCE = (
    "the ferry leaves at nine and takes about two hours , with a stop at the lighthouse where you "
    "can see seals on the rocks in winter ."
)
PACES = (0.0, 0.02)
MODES: tuple[StreamMode, ...] = ("hold", "lookbehind", "flag")


def measure(paces: Sequence[float]) -> list[dict[str, Any]]:
    """Return the seconds of every mode at every pace."""
    found: list[dict[str, Any]] = []
    for pace in paces:
        for mode in MODES:
            added, first, bare = asyncio.run(_measure(mode, pace))
            row = {"mode": mode, "pace_s": pace, "added_s": added}
            found.append({**row, "first_s": first, "bare_s": bare})
    return found


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per mode and pace."""
    shown = Table(title=f"Bundled model, a stream of {TOKENS} tokens")
    for heading in ("mode", "a token every", "added s", "first text s", "without guard s"):
        shown.add_column(heading, justify="right")
    for row in found:
        seconds = (f"{row[name]:.2f}" for name in ("added_s", "first_s", "bare_s"))
        shown.add_row(row["mode"], f"{row['pace_s'] * 1000:.0f} ms", *seconds)
    return shown


async def _measure(mode: StreamMode, pace: float) -> tuple[float, float, float]:
    """Return the seconds added, those until the first text left, and those without a guard."""

    async def chat(prompt: str) -> AsyncIterator[str]:
        words = SENTENCE.split()
        for place in range(TOKENS):
            if pace:
                await asyncio.sleep(pace)
            # Numbers, so that no window was read before.
            yield f"{words[place % len(words)]} " if place % 9 else f"{place} {mode} {pace} "

    def ignore(event: CheckEvent, result: CheckResult) -> None:
        return None

    _, bare = await _read(chat("go on"))
    guard = Guard(policy=Policy(stream=mode), hooks=Hooks(after_output=ignore))
    await guard.check("go on")
    first, whole = await _read(guard.wrap(chat)("go on"))
    return whole - bare, first, bare


async def _read(stream: AsyncIterator[str]) -> tuple[float, float]:
    """Return the seconds until the first chunk, and until the end."""
    began = time.perf_counter()
    first = 0.0
    async for _ in stream:
        first = first or time.perf_counter() - began
    return first, time.perf_counter() - began
