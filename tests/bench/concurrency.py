"""Many checks at once: how many a second, how long each takes, and what the event loop feels of it.

The loop's lag is how much later than asked a 5 ms sleep ends; beside it stands the idle loop's.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from guardrail_sdk import Guard

IN_FLIGHT = (1, 8, 64)
CHECKS = 320
TICK_S = 0.005
TEXT = (
    "could you tell me how the ferries to the islands run on sundays in winter and whether my old "
    "neighbour may take her dog along when the weather turns"
)


def measure(guard: Guard, checks: int) -> dict[str, Any]:
    """Return the loop's lags when idle, and the figures of every number of checks in flight."""
    found: list[dict[str, object]] = []
    idle = asyncio.run(_idle())
    for count in IN_FLIGHT:
        seconds, times, lags = asyncio.run(_measure(guard, count, checks))
        row = {"in_flight": count, "rate": checks / seconds}
        found.append({**row, "ms": _quantiles(times), "lag_ms": _quantiles(lags)})
    return {"checks": checks, "idle_lag_ms": _quantiles(idle), "rows": found}


def table(found: Mapping[str, Any]) -> Table:
    """Return one row per number of checks in flight."""
    shown = Table(title=f"Bundled model, {found['checks']} checks of 4 to 40 words, asyncio")
    for heading in ("in flight", "checks/s", "p50 ms", "p99 ms", "loop lag p50 ms", "p99 ms"):
        shown.add_column(heading, justify="right")
    shown.add_row("idle loop", "", "", "", *_shown(found["idle_lag_ms"]))
    for row in found["rows"]:
        times = (*_shown(row["ms"]), *_shown(row["lag_ms"]))
        shown.add_row(str(row["in_flight"]), f"{row['rate']:.0f}", *times)
    return shown


async def _idle() -> list[float]:
    lags: list[float] = []
    ticking = asyncio.create_task(_tick(lags))
    await asyncio.sleep(1.0)
    ticking.cancel()
    return lags


async def _measure(guard: Guard, count: int, checks: int) -> tuple[float, list[float], list[float]]:
    """Return the seconds of all checks, the milliseconds of each, and the loop's lags."""
    rng = random.Random(count)
    texts = [" ".join(rng.choices(TEXT.split(), k=rng.randint(4, 40))) for _ in range(checks)]
    times: list[float] = []
    lags: list[float] = []
    await guard.check("hello")
    ticking = asyncio.create_task(_tick(lags))

    async def work() -> None:
        while texts:
            text = texts.pop()
            began = time.perf_counter()
            await guard.check(text)
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(count)))
    seconds = time.perf_counter() - began
    ticking.cancel()
    return seconds, times, lags


async def _tick(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        lags.append((time.perf_counter() - began - TICK_S) * 1000)


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=100)[-1]


def _shown(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{value:.1f}" for value in values)
