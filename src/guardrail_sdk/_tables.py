"""What the command line shows to people: tables, drawn by rich, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from guardrail_sdk._metrics import Interval, Metrics
from guardrail_sdk._policy import Policy
from guardrail_sdk._types import CheckResult, Stage, Verdict
from guardrail_sdk.artifact import Artifact
from guardrail_sdk.evaluation import Progress, Report

if TYPE_CHECKING:
    from rich.table import Table

_TOP_CATEGORIES = 3
_LOG_WIDTH = 120
_COLUMNS = ("rows", "unsafe", "F1", "always", "recall", "FPR", "AUPRC", "R@5%")
_JUDGED: Mapping[Stage, str] = {"input": "prompts", "output": "responses"}
_STYLES = {"allow": "green", "flag": "yellow", "redact": "red", "block": "bold red"}


def threshold_in_force(verdict: Verdict, policy: Policy) -> float:
    """Return the P(unsafe) from which `verdict` counts as unsafe: the policy's, or the model's."""
    own = policy.unsafe_threshold(verdict.stage)
    return verdict.threshold if own is None else own


def show_check(result: CheckResult, policy: Policy) -> None:
    """Print one check: what was decided, why, and from which scores."""
    from rich.text import Text

    decision, verdict = result.decision, result.verdict
    table = _fields()
    table.add_row("decision", Text(decision.action, style=_STYLES[decision.action]))
    table.add_row("reason", Text(decision.reason))
    for name, value in () if verdict is None else _verdict_fields(verdict, policy):
        table.add_row(name, Text(value))
    _print(table)


def show_model(artifact: Artifact) -> None:
    """Print what a model folder says of itself."""
    from rich.text import Text

    table = _fields()
    for name, value in _model_fields(artifact):
        table.add_row(name, Text(value))
    _print(table)


def show_report(report: Report) -> None:
    """Print one table each of the files, and of the groups that say more than those."""
    _print(_metrics_table("File", _by_file(report)))
    if len(report.stages) > 1:
        _print(_metrics_table("Judged", {_JUDGED[stage]: m for stage, m in report.stages.items()}))
    if len(report.sources) > len(report.files):
        _print(_metrics_table("Source", report.sources))
    if report.categories:
        named = {f"{code} {code.label}": metrics for code, metrics in report.categories.items()}
        _print(_metrics_table("Category", named))
    _print(_metrics_table("Language", report.languages))
    table = _fields()
    for name, value in (
        ("always", "F1 of calling every row unsafe: what F1 has to beat"),
        ("F1, FPR", "with the 95 % interval of a bootstrap over the rows"),
        ("R@5%", "best recall that flags at most 5 % of the safe rows"),
        ("Category", "unsafe rows of the category, and every safe row of its files"),
        ("model", report.model or "no verdict"),
        ("policy", report.policy or "no verdict"),
        ("not judged", f"{report.skipped} rows without a label"),
        ("failed", f"{report.failed} checks, counted as flagged with P(unsafe) = 1"),
    ):
        table.add_row(name, value)
    _print(table)


@contextmanager
def progress_bar(label: str) -> Generator[Progress, None, None]:
    """Draw a progress bar on standard error, if that is a terminal, while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Bar(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _verdict_fields(verdict: Verdict, policy: Policy) -> Iterator[tuple[str, str]]:
    threshold = threshold_in_force(verdict, policy)
    yield "P(unsafe)", f"{verdict.unsafe_probability:.3f} (unsafe from {threshold:.3f})"
    top = sorted(verdict.categories.items(), key=lambda item: item[1], reverse=True)
    shown = (f"{code} {code.label}: {value:.3f}" for code, value in top[:_TOP_CATEGORIES])
    yield "top categories", "\n".join(shown)
    span = f"characters {verdict.span.start} to {verdict.span.end}"
    yield "judged", f"{verdict.role} message {verdict.message_index}, {span}"
    yield "windowed", "yes: the worst window is shown" if verdict.windowed else "no"
    if verdict.context_trimmed:
        yield "context", "earlier messages were shortened"
    yield "reading", verdict.reading
    yield "model", verdict.model
    yield "policy", verdict.policy
    yield "latency", f"{verdict.latency_ms:.1f} ms"


def _model_fields(artifact: Artifact) -> Iterator[tuple[str, str]]:
    manifest, provenance = artifact.manifest, artifact.manifest.provenance
    yield "id", artifact.id
    yield "folder", str(artifact.folder)
    yield "family, template", f"{manifest.family}, {manifest.template}"
    yield "context", f"{manifest.context_length} tokens"
    quantisation = manifest.quantisation
    yield (
        "weights",
        "not quantised"
        if quantisation is None
        else f"INT{quantisation.bits}, blocks of {quantisation.block_size}; INT8 activations",
    )
    for stage, thresholds in manifest.thresholds.items():
        offered = (f"{preset} {value:g}" for preset, value in thresholds.by_preset.items())
        yield f"{stage} thresholds", ", ".join(offered)
    yield "base", f"{provenance.base} ({provenance.base_licence})"
    yield "recipe", f"{provenance.recipe}, seed {provenance.seed}"
    uses = (f"{use}: {rows}" for use, rows in provenance.data_by_use.items())
    yield "training rows", ", ".join(uses) or "none"
    size = sum((artifact.folder / name).stat().st_size for name in manifest.files)
    yield "files", f"{len(manifest.files)}, {size / 1e6:.1f} MB"


def _by_file(report: Report) -> dict[str, Metrics]:
    """Return the files' metrics by name, or by path if names repeat, and those of all together."""
    names = {
        path: Path(path).name.removesuffix(".gz").removesuffix(".jsonl") for path in report.files
    }
    unique = len(set(names.values())) == len(names)
    rows = {names[path] if unique else path: metrics for path, metrics in report.files.items()}
    return {**rows, "all files": report.overall} if len(rows) > 1 else rows


def _metrics_table(title: str, groups: Mapping[str, Metrics]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(title, overflow="fold")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, metrics in groups.items():
        table.add_row(
            *(Text(name), str(metrics.rows), str(metrics.unsafe)),
            _with_interval(metrics.f1, metrics.f1_interval),
            *(_figure(metrics.always_unsafe_f1), _figure(metrics.recall)),
            _with_interval(metrics.fpr, metrics.fpr_interval),
            *(_figure(metrics.auprc), _figure(metrics.recall_at_fpr_5)),
        )
    return table


def _with_interval(value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return _figure(value)
    low, high = (f"{end:.2f}" if end >= 0.995 else f"{end:.2f}"[1:] for end in interval)
    return f"{_figure(value)} {low}-{high}"


def _figure(value: float | None) -> str:
    """Return `value` in four characters, so that eight columns and a name fit in 80."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"[1:]


def _fields() -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        # There is no width to fit in, and a log is easier to search unfolded.
        console.width = _LOG_WIDTH
    console.print(table)
    console.print()
