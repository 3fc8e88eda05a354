"""Measures one subject on one model, in a process of its own.

Usage: `worker.py OUT MODEL SUBJECT ROOT`: reads `ROOT/MODEL/inputs.json`, writes `OUT`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from inputs import Inputs, from_json
from models import MODELS, Model, guard_folder
from subjects import Subject, entries

_DECODED: Final = 24
_STREAMS: Final = 3

InputT = TypeVar("InputT")


def main() -> None:
    """Measure; what failed is written in place of the figures."""
    out, name, subject, root = sys.argv[1:]
    folder = Path(root)
    model, artifact = MODELS[name], guard_folder(name, folder)
    inputs = from_json(json.loads((folder / name / "inputs.json").read_text(encoding="utf-8")))
    began = time.perf_counter()
    try:
        opened = entries(artifact)[subject].open(artifact, folder / name)
        logits = opened.logits([row for item in inputs.proof for row in item.rows])
        found: dict[str, object] = {
            "about": opened.about,
            "load_s": time.perf_counter() - began,
            "logits": logits.tolist(),
            **_measure(opened, model, inputs),
        }
    except Exception as error:
        # A runtime that can't be had, or can't read the model, is a row that says so.
        found = {"error": f"{type(error).__name__}: {error}".strip()[:300]}
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def _measure(subject: Subject, model: Model, inputs: Inputs) -> dict[str, object]:
    limit = model.most_seconds
    # Before a decoder has read these very texts: afterwards it would keep them.
    tokens = {length: subject.reads(items[0].rows) for length, items in inputs.lengths.items()}
    lengths = {
        length: _timed(subject.check, items, limit) for length, items in inputs.lengths.items()
    }
    rates: dict[str, float] = {}
    for at_once, items in inputs.at_once.items():
        began = time.perf_counter()
        subject.check_all(items, int(at_once))
        rates[at_once] = len(items) / (time.perf_counter() - began)
    grown: list[float] = []
    if inputs.growing:
        grown = _timed(
            lambda seed: subject.check_growing(inputs.growing, seed), range(_STREAMS), 3 * limit
        )
    ids = next(iter(inputs.lengths.values()))[0].rows[0]
    return {
        "lengths": lengths,
        "tokens": tokens,
        "rates": rates,
        "stream": grown,
        "decode": subject.decode(ids, _DECODED),
        "decode_position": len(ids) + _DECODED // 2,
    }


def _timed(
    run: Callable[[InputT], None], inputs: Sequence[InputT], most_seconds: float
) -> list[float]:
    """Return the seconds of each run until the time is up, without the first if there are more."""
    times: list[float] = []
    for value in inputs:
        began = time.perf_counter()
        run(value)
        times.append(time.perf_counter() - began)
        if sum(times) > most_seconds:
            break
    return times[1:] or times


if __name__ == "__main__":
    main()
