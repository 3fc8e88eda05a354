"""The SDK by itself with the bundled model: its start, its checks, many at once, and streams.

Usage: `alone.py OUT [--quick]`. "Again" is a text that was just checked. The last column is a fake
model that costs nothing: what remains there is the guard around the model.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import concurrency
import streaming
from rich.table import Table

from guardrail_sdk import Guard
from guardrail_sdk._kernel import KERNELS
from guardrail_sdk.testing import FakeModel

SENTENCE = "Could you tell me how the ferries to the islands run on Sundays in winter? "
LENGTHS = (1, 5, 20, 60)
ROUNDS = 30
STARTS = 5
_START = """
import time; began = time.perf_counter()
import guardrail_sdk; imported = time.perf_counter()
guardrail_sdk.Guard().check_sync("Hello"); checked = time.perf_counter()
import json, resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([imported - began, peak]))
"""


def main() -> None:
    """Measure every section and write what was found."""
    quick = "--quick" in sys.argv
    rounds = 5 if quick else ROUNDS
    found = {
        "start": _start(),
        "rounds": rounds,
        "latency": _latency(rounds),
        "concurrency": concurrency.measure(Guard(), 64 if quick else concurrency.CHECKS),
        "streaming": streaming.measure((0.0,) if quick else streaming.PACES),
    }
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Return a table of every section."""
    latency = Table(
        title=f"Bundled model, check_sync, milliseconds: p50 (p95) of {found['rounds']} rounds"
    )
    for heading in ("characters", *KERNELS, "again", "no model"):
        latency.add_column(heading, justify="right")
    for row in found["latency"]:
        cells = [f"{p50:.1f} ({p95:.1f})" for p50, p95 in row["kernels"]]
        own = (f"{row['again']:.2f}", f"{row['no_model']:.2f}")
        latency.add_row(str(row["characters"]), *cells, *own)
    return [latency, concurrency.table(found["concurrency"]), streaming.table(found["streaming"])]


def _start() -> dict[str, float]:
    """Return a new process's seconds until it imported the SDK and had a verdict, and its memory.

    The seconds to the verdict are the whole process's, the interpreter's own start included.
    """
    imports: list[float] = []
    verdicts: list[float] = []
    peaks: list[float] = []
    for _ in range(STARTS):
        began = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", _START], check=True, capture_output=True)
        verdicts.append(time.perf_counter() - began)
        imported, peak = json.loads(run.stdout)
        imports.append(imported)
        peaks.append(peak)
    return {
        "import_s": statistics.median(imports),
        "verdict_s": statistics.median(verdicts),
        "peak_mib": max(peaks),
    }


def _latency(rounds: int) -> list[dict[str, object]]:
    guards = {kernel: Guard(kernel=kernel) for kernel in KERNELS}
    for guard in guards.values():
        guard.check_sync("Hello")
    around = Guard(FakeModel(["never said"]))
    found: list[dict[str, object]] = []
    for count in LENGTHS:
        texts = _texts(count, rounds)
        taken = [_times(guard.check_sync, texts) for guard in guards.values()]
        again = _times(guards["int4"].check_sync, texts[:1] * rounds)
        found.append(
            {
                "characters": len(texts[0]),
                "kernels": [
                    (statistics.median(times), statistics.quantiles(times, n=20)[-1])
                    for times in taken
                ],
                "again": statistics.median(again),
                "no_model": statistics.median(_times(around.check_sync, texts)),
            }
        )
    return found


def _texts(count: int, rounds: int) -> list[str]:
    """Return a text of that many sentences for each round, of the same words in another order.

    The logits of a text that was read lately are remembered: no two may be the same.
    """
    words = (SENTENCE * count).split()
    random.seed(count)
    return [" ".join(random.sample(words, len(words))) for _ in range(rounds)]


def _times(check: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    """Return the milliseconds that each text takes."""
    times: list[float] = []
    for text in texts:
        began = time.perf_counter()
        check(text)
        times.append((time.perf_counter() - began) * 1000)
    return times


if __name__ == "__main__":
    main()
