"""How long one check takes, by length of text: run it on an idle machine (`make bench`).

It prints the machine and the runtime, and the bundled model with every kernel. "Again" is a text
that was just checked. The last column is a fake model that costs nothing: what remains there is the
guard around the model.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import concurrency
import onnxruntime
import streaming
from rich.console import Console
from rich.table import Table

from guardrail_sdk import Guard
from guardrail_sdk._kernel import KERNELS
from guardrail_sdk.testing import FakeModel

SENTENCE = "Could you tell me how the ferries to the islands run on Sundays in winter? "
LENGTHS = (1, 5, 20, 60)
ROUNDS = 30


def main() -> None:
    """Time every kernel and print one table."""
    began = time.perf_counter()
    Guard(kernel="int4").check_sync("Hello")
    first = time.perf_counter() - began
    guards = {kernel: Guard(kernel=kernel) for kernel in KERNELS}
    for guard in guards.values():
        guard.check_sync("Hello")
    around = Guard(FakeModel(["never said"]))
    table = Table(title=f"Latency of check_sync, milliseconds: p50 (p95) of {ROUNDS} rounds")
    for heading in ("characters", *KERNELS, "again", "no model"):
        table.add_column(heading, justify="right")
    for count in LENGTHS:
        texts = _texts(count)
        taken = {kernel: _times(guard.check_sync, texts) for kernel, guard in guards.items()}
        again = _times(guards["int4"].check_sync, texts[:1] * ROUNDS)
        own = _times(around.check_sync, texts)
        table.add_row(
            str(len(texts[0])),
            *(
                f"{statistics.median(times):.1f} ({statistics.quantiles(times, n=20)[-1]:.1f})"
                for times in taken.values()
            ),
            f"{statistics.median(again):.2f}",
            f"{statistics.median(own):.2f}",
        )
    console = Console()
    console.print(
        f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}"
    )
    console.print(f"Loading the model and the first check: {first:.2f} s")
    console.print(table)
    console.print(concurrency.table(Guard()))
    console.print(streaming.table())


def _texts(count: int) -> list[str]:
    """Return a text of that many sentences for each round, of the same words in another order.

    The logits of a text that was read lately are remembered: no two may be the same.
    """
    words = (SENTENCE * count).split()
    random.seed(count)
    return [" ".join(random.sample(words, len(words))) for _ in range(ROUNDS)]


def _times(check: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    """Return the milliseconds that each text takes."""
    times: list[float] = []
    for text in texts:
        began = time.perf_counter()
        check(text)
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
