"""How long one check takes, by length of text: run it on an idle machine (`make bench`).

It prints the machine and the runtime, and as its peer the same checks with a fake model that costs
nothing: what remains there is the guard around the model.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
from rich.console import Console
from rich.table import Table

from guardrail_sdk import Guard
from guardrail_sdk.testing import FakeModel

SENTENCE = "Could you tell me how the ferries to the islands run on Sundays in winter? "
LENGTHS = (1, 5, 20, 60)
ROUNDS = 30


def main() -> None:
    """Time both models and print one table."""
    began = time.perf_counter()
    guard = Guard()
    guard.check_sync("Hello")
    first = time.perf_counter() - began
    around = Guard(FakeModel(["never said"]))
    table = Table(title=f"Latency of check_sync, milliseconds, {ROUNDS} rounds")
    for heading in ("characters", "bundled p50", "bundled p95", "no model p50"):
        table.add_column(heading, justify="right")
    for count in LENGTHS:
        text = SENTENCE * count
        bundled = _times(lambda text=text: guard.check_sync(text))
        own = _times(lambda text=text: around.check_sync(text))
        table.add_row(
            str(len(text)),
            f"{statistics.median(bundled):.1f}",
            f"{statistics.quantiles(bundled, n=20)[-1]:.1f}",
            f"{statistics.median(own):.2f}",
        )
    console = Console()
    console.print(
        f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}"
    )
    console.print(f"Loading the model and the first check: {first:.2f} s")
    console.print(table)


def _times(check: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each round."""
    times: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        check()
        times.append((time.perf_counter() - began) * 1000)
    return times


def _processor() -> str:
    """Return the processor's name, as well as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
