"""What the measurements say: agreement, ratios, the bars, one table and one plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.table import Table

Found = Mapping[str, Any]
"""JSON: a subject's figures, or its `error`."""

SDK: Final = "sdk"
GENAI, LLAMA_CPP, TRANSFORMERS = "onnxruntime-genai", "llama.cpp", "transformers"
_MOST_MIB: Final = 440


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Something that must be reached.

    Attributes:
        name: What.
        value: What was measured; None if it couldn't be.
        least: The bar. Where less is better, so is a `value` below `most`.
        aim: What would be better still; None if nothing is said of it.
        unit: What the numbers are of.
        falling: Whether less is better.
    """

    name: str
    value: float | None
    least: float
    unit: str = "x"
    aim: float | None = None
    falling: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None if that wasn't measured."""
        return None if self.value is None else self._reaches(self.value, self.least)

    @property
    def aim_met(self) -> bool | None:
        """Whether the aim is reached; None if there is none or nothing was measured."""
        if self.value is None or self.aim is None:
            return None
        return self._reaches(self.value, self.aim)

    def _reaches(self, value: float, limit: float) -> bool:
        return value <= limit if self.falling else value >= limit


def difference(logits: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> float:
    """Return the mean distance of `logits` from `reference`, as a share of its spread.

    Infinity if their shapes differ or a logit is not a number.
    """
    found = [value for row in logits for value in row]
    wanted = [value for row in reference for value in row]
    if [len(row) for row in logits] != [len(row) for row in reference]:
        return math.inf
    if not all(map(math.isfinite, found)):
        return math.inf
    distance = statistics.fmean(abs(a - b) for a, b in zip(found, wanted, strict=True))
    return distance / statistics.pstdev(wanted)


def median_ms(subject: Found | None, length: int) -> float | None:
    """Return the milliseconds of a verdict on that many tokens; None if not measured."""
    times = (subject or {}).get("lengths", {}).get(str(length))
    return 1000 * statistics.median(times) if times else None


def ratio(slow: float | None, fast: float | None) -> float | None:
    """Return how many times faster `fast` is; None if either wasn't measured."""
    return slow / fast if slow is not None and fast is not None else None


def bars(results: Found) -> list[Bar]:
    """Return every bar that the models of this run have to reach."""
    found: list[Bar] = []
    models: Mapping[str, Found] = results["models"]
    if "smollm2" in models:
        found += _decoder_bars(models["smollm2"]["subjects"])
    if "paper" in models:
        found += _paper_bars(models["paper"], results["probe"]["read_gb_s"])
    if results.get("alone"):
        found += _alone_bars(results["alone"])
    return found


def _decoder_bars(subjects: Mapping[str, Found]) -> list[Bar]:
    own = median_ms(subjects.get(SDK), 64)
    return [
        Bar(
            name=f"SmolLM2, 64 tokens: faster than {peer}",
            value=ratio(median_ms(subjects.get(peer), 64), own),
            least=least,
            aim=aim,
        )
        for peer, least, aim in ((GENAI, 2, None), (LLAMA_CPP, 3, None), (TRANSFORMERS, 1.5, 3))
    ]


def _paper_bars(model: Found, read_gb_s: float) -> list[Bar]:
    sizes, subjects = model["sizes"], model["subjects"]
    peers = [
        taken
        for name, subject in subjects.items()
        if not name.startswith(SDK) and (taken := median_ms(subject, 64)) is not None
    ]
    own = subjects.get(SDK)
    rate = decoded_per_s(own)
    bound = most_decoded_per_s(sizes, own, read_gb_s)
    return [
        Bar(
            name="paper's shape: file",
            value=sizes["file"] / 2**20,
            least=_MOST_MIB,
            unit=" MiB",
            falling=True,
        ),
        Bar(
            name="paper's shape, 64 tokens and 13 categories: faster than the fastest peer",
            value=ratio(min(peers, default=None), median_ms(own, 64)),
            least=3,
            aim=5,
        ),
        Bar(
            name="paper's shape: decode, of what memory allows",
            value=None if rate is None or bound is None else 100 * rate / bound,
            least=80,
            unit=" %",
        ),
    ]


def _alone_bars(alone: Found) -> list[Bar]:
    start, busiest = alone["start"], alone["concurrency"]["rows"][-1]
    return [
        _most("bundled model: import", 1000 * start["import_s"], 250, 150, " ms"),
        _most("bundled model: process start to first verdict", start["verdict_s"], 1.5, 1, " s"),
        _most("bundled model: peak memory", start["peak_mib"], 350, None, " MB"),
        _most(
            f"event loop's lag p99 with {busiest['in_flight']} checks in flight",
            busiest["lag_ms"][1],
            10,
            5,
            " ms",
        ),
    ]


def _most(name: str, value: float, most: float, aim: float | None, unit: str) -> Bar:
    return Bar(name=name, value=value, least=most, aim=aim, unit=unit, falling=True)


def decoded_per_s(subject: Found | None) -> float | None:
    """Return the tokens that a subject says a second; None if it says none."""
    times = (subject or {}).get("decode")
    return 1 / statistics.median(times) if times else None


def most_decoded_per_s(sizes: Found, subject: Found | None, read_gb_s: float) -> float | None:
    """Return how many tokens a second memory allows: each reads all weights, and its context."""
    if subject is None or "decode_position" not in subject:
        return None
    read = sizes["token"] + subject["decode_position"] * sizes["position"]
    return read_gb_s * 1e9 / read


def bar_table(found: Iterable[Bar]) -> Table:
    """Return one row per bar."""
    shown = Table(title="The bars")
    for heading in ("what", "measured", "bar", "", "aim"):
        shown.add_column(heading, justify="left" if heading == "what" else "right")
    words = {True: "met", False: "NOT MET", None: "not measured"}
    for bar in found:
        sign = "≤" if bar.falling else "≥"
        value = "" if bar.value is None else f"{bar.value:.3g}{bar.unit}"
        aim = "" if bar.aim is None else f"{sign} {bar.aim:g}{bar.unit}"
        aimed = "" if bar.aim_met is None else f" ({'met' if bar.aim_met else 'not met'})"
        limit = f"{sign} {bar.least:g}{bar.unit}"
        shown.add_row(bar.name, value, limit, words[bar.met], f"{aim}{aimed}")
    return shown


def main_table(results: Found) -> Table:
    """Return every subject's figures, model by model, with ratios to the SDK's.

    A ratio above 1 says how many times longer a subject takes than the SDK as it comes.
    """
    models: Mapping[str, Found] = results["models"]
    lengths = sorted({int(length) for model in models.values() for length in _lengths(model)})
    flights = sorted({int(count) for model in models.values() for count in _flights(model)})
    shown = Table(title="Time to verdict, ms: median (times the SDK's)")
    shown.add_column("", overflow="fold")
    for length in lengths:
        shown.add_column(f"{length} tok", justify="right", no_wrap=True)
    for count in flights:
        shown.add_column(f"/s, {count} at once", justify="right")
    for heading in ("stream s", "decode tok/s", "peak MiB", "off by"):
        shown.add_column(heading, justify="right")
    for model in models.values():
        shown.add_section()
        shown.add_row(f"[bold]{model['title']}[/bold]")
        own = model["subjects"].get(SDK)
        for name, subject in model["subjects"].items():
            if "error" in subject:
                shown.add_row(name, "[red]no figures[/red]")
                continue
            times = [_timed(subject, own, length) for length in lengths]
            rates = [_number(subject["rates"].get(str(count)), ".1f") for count in flights]
            stream = statistics.median(subject["stream"]) if subject["stream"] else None
            shown.add_row(
                name,
                *times,
                *rates,
                _number(stream, ".2f"),
                _number(decoded_per_s(subject), ".1f"),
                f"{subject['peak_mib']:.0f}",
                f"{100 * subject['off_by']:.1f} %",
            )
    return shown


def notes(results: Found) -> list[str]:
    """Return a line on each subject: what it is, or why it has no figures."""
    lines: list[str] = []
    for model in results["models"].values():
        for name, subject in model["subjects"].items():
            failed = "error" in subject
            about = f"no figures: {subject['error']}" if failed else subject["about"]
            lines.append(f"{model['title']}, {name}: {about}")
    return lines


def limits(results: Found) -> list[str]:
    """Return how near the SDK comes to what the machine can do, and where its time goes."""
    probe = results["probe"]
    lines = [
        probe["machine"],
        f"Memory is read at {probe['read_gb_s']:.1f} GB/s, float32 products run at "
        f"{probe['gemm_gflops']:.0f} GFLOP/s at best.",
    ]
    for name, model in results["models"].items():
        lines += _model_limits(model, probe)
        operators = probe["operators"].get(name)
        if operators:
            shares = (f"{kind} {100 * share:.0f} %" for kind, share in operators["shares"].items())
            about = f"{operators['tokens']} tokens read at once, {operators['kernel']}"
            lines.append(f"{model['title']}, time by operator ({about}): {', '.join(shares)}.")
    return lines


def _model_limits(model: Found, probe: Found) -> list[str]:
    sizes, lines = model["sizes"], list[str]()
    size = f"{model['title']}: {sizes['file'] / 2**20:.0f} MiB"
    if sizes["parent"]:
        size += (
            f", {sizes['parent'] / sizes['file']:.1f} times smaller than its unpruned 16-bit "
            f"parent of {sizes['parent'] / 2**20:.0f} MiB"
        )
    lines.append(f"{size}.")
    own = model["subjects"].get(SDK)
    taken = median_ms(own, 64)
    if own and taken is not None:
        rate = 2 * sizes["weights"] * own["tokens"]["64"] / taken / 1e6
        lines.append(
            f"{model['title']}, sdk, a 64-token message: {taken / 1000:.3f} s for "
            f"{own['tokens']['64']} tokens that are read, {rate:.0f} GFLOP/s in projections, "
            f"{100 * rate / probe['gemm_gflops']:.0f} % of the float32 peak."
        )
    rate, bound = decoded_per_s(own), most_decoded_per_s(sizes, own, probe["read_gb_s"])
    if rate is not None and bound is not None:
        lines.append(
            f"{model['title']}, sdk: {rate:.1f} tokens/s decoded, {100 * rate / bound:.0f} % of "
            f"the {bound:.1f} that memory allows; the paper reports 30 on a "
            "phone, and 2.5 s to the first."
        )
    return lines


def plot(results: Found, path: Path) -> None:
    """Draw every subject's time to verdict by length, model by model, to a PNG file."""
    from importlib import import_module

    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot, ticker = import_module("matplotlib.pyplot"), import_module("matplotlib.ticker")
    models: Mapping[str, Found] = results["models"]
    figure, axes = pyplot.subplots(
        1, len(models), figsize=(5.2 * len(models), 5.4), squeeze=False, layout="constrained"
    )
    for axis, model in zip(axes[0], models.values(), strict=True):
        drawn = {name: one for name, one in model["subjects"].items() if one.get("lengths")}
        for name, subject in drawn.items():
            points = [(n, median_ms(subject, n)) for n in map(int, subject["lengths"])]
            own = name.startswith(SDK)
            axis.plot(
                [length for length, _ in points],
                [taken for _, taken in points],
                label=name,
                marker="o" if own else "s",
                markersize=4,
                linewidth=2.4 if name == SDK else 1.2,
                linestyle="-" if own else "--",
            )
        axis.set(xscale="log", yscale="log", xlabel="tokens of the message", title=model["title"])
        axis.set_ylabel("ms to the verdict, median")
        axis.set_xticks(sorted(map(int, _lengths(model))))
        axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.grid(visible=True, which="both", alpha=0.2)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    figure.suptitle(results["probe"]["machine"], fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _lengths(model: Found) -> set[str]:
    return {
        length for subject in model["subjects"].values() for length in subject.get("lengths", ())
    }


def _flights(model: Found) -> set[str]:
    return {count for subject in model["subjects"].values() for count in subject.get("rates", ())}


def _timed(subject: Found, own: Found | None, length: int) -> str:
    taken = median_ms(subject, length)
    if taken is None:
        return ""
    times = ratio(taken, median_ms(own, length))
    return f"{taken:.1f}" if times is None else f"{taken:.1f} ({times:.1f})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
