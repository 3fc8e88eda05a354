"""Measures this SDK against other runtimes, on the same weights and inputs: `make bench`.

Everything runs one after the other, each subject in a process of its own. Figures, table and plot
go into `build/bench`. Where two subjects' logits disagree there is no table, but an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import alone
import inputs
import report
from models import LONGEST, MODELS, THREADS, Sizes, build, guard_folder
from rich.console import Console
from subjects import REFERENCE, entries

_HERE = Path(__file__).parent
_DEFAULT = ("encoder", "smollm2", "paper")
_QUICK = ("encoder", "smollm2")
_ROUNDS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured."""

    out: Path
    models: Sequence[str]
    subjects: Sequence[str]
    quick: bool
    long: bool


def main() -> int:
    """Measure; return 1 if what was measured can't be compared."""
    options = _options()
    console = Console(width=max(Console().width, 160))
    options.out.mkdir(parents=True, exist_ok=True)
    _settle(options.out)
    models = {name: _measured(name, options, console) for name in options.models}
    console.print("Probing the machine.")
    probe = _run("probe.py", options.out / "probe.json", options.out / "models", *options.models)
    found: dict[str, Any] = {"probe": probe, "models": models}
    if "encoder" in options.models and not options.subjects:
        console.print("Measuring the SDK by itself.")
        quick = ["--quick"] if options.quick else []
        found["alone"] = _run("alone.py", options.out / "alone.json", *quick)
    (options.out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    if not _comparable(found, console):
        return 1
    report.plot(found, options.out / "results.png")
    _show(found, console)
    console.print(f"Figures: {options.out}/results.json and .png")
    return 0


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS))
    parser.add_argument("--subjects", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="short texts, few runs")
    parser.add_argument("--long", action="store_true", help=f"{LONGEST} tokens for every model")
    given = parser.parse_args()
    chosen = given.models or (_QUICK if given.quick else _DEFAULT)
    return Options(
        out=given.out.resolve(),
        models=chosen,
        subjects=given.subjects,
        quick=given.quick,
        long=given.long,
    )


def _settle(out: Path) -> None:
    """Give all that is measured the same threads, and the SDK a cache of this benchmark's own."""
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def _measured(name: str, options: Options, console: Console) -> dict[str, Any]:
    """Measure every subject on one model."""
    root = options.out / "models"
    model = MODELS[name]
    sizes: Sizes = build(name, root)
    artifact = guard_folder(name, root)
    lengths = [length for length in model.lengths if not options.quick or length <= 128]
    if options.long and LONGEST not in lengths:
        lengths.append(LONGEST)
    made = inputs.make(
        artifact,
        lengths,
        4 if options.quick else _ROUNDS,
        at_once=model.at_once[:1] if options.quick else model.at_once,
        stream=model.stream and not options.quick,
    )
    written = json.dumps(inputs.to_json(made))
    (root / name / "inputs.json").write_text(written, encoding="utf-8")
    known = entries(artifact)
    chosen = [entry for entry in known if not options.subjects or entry in options.subjects]
    if REFERENCE not in chosen:
        chosen.insert(0, REFERENCE)
    subjects: dict[str, dict[str, Any]] = {}
    for subject in chosen:
        console.print(f"Measuring {model.title}: {subject}.")
        out = options.out / "subject.json"
        subjects[subject] = _run("worker.py", out, name, subject, root)
    _compare(subjects, {subject: known[subject].tolerance for subject in chosen})
    return {"title": model.title, "sizes": asdict(sizes), "subjects": subjects}


def _run(script: str, out: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run a script of this folder in a process of its own; return the JSON that it writes.

    A process that dies, such as for want of memory, leaves an `error`.
    """
    out.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, _HERE / script, out, *arguments], check=False)
    if done.returncode or not out.exists():
        return {"error": f"{script} ended with code {done.returncode}"}
    return json.loads(out.read_text(encoding="utf-8"))


def _compare(subjects: Mapping[str, dict[str, Any]], tolerances: Mapping[str, float]) -> None:
    """Note how far each subject's logits are off those of the reference."""
    reference = subjects[REFERENCE].get("logits", [])
    for name, subject in subjects.items():
        if "error" not in subject:
            subject["off_by"] = report.difference(subject.pop("logits"), reference)
            subject["tolerance"] = tolerances[name]


def _comparable(found: Mapping[str, Any], console: Console) -> bool:
    """Return whether all subjects computed the same; say which didn't."""
    wrong = [
        f"{model['title']}: {name} is off by {100 * subject['off_by']:.1f} % of the logits' "
        f"spread, more than {100 * subject['tolerance']:.1f} %"
        for model in found["models"].values()
        for name, subject in model["subjects"].items()
        if "error" not in subject and not subject["off_by"] <= subject["tolerance"]
    ]
    wrong += [
        f"{name} has no figures: {part['error']}"
        for name in ("probe", "alone")
        if "error" in (part := found.get(name, {}))
    ]
    wrong += [
        f"{model['title']}: {name} has no figures: {model['subjects'][name]['error']}"
        for model in found["models"].values()
        for name in (REFERENCE, report.SDK)
        if "error" in model["subjects"].get(name, {})
    ]
    for line in wrong:
        console.print(f"[red]{line}[/red]")
    return not wrong


def _show(found: Mapping[str, Any], console: Console) -> None:
    """Print limits, tables, bars and what each subject is."""
    for line in report.limits(found):
        console.print(line, highlight=False)
    console.print(report.main_table(found))
    for line in report.notes(found):
        console.print(line, highlight=False)
    if "alone" in found:
        for table in alone.tables(found["alone"]):
            console.print(table)
    console.print(report.bar_table(report.bars(found)))


if __name__ == "__main__":
    raise SystemExit(main())
