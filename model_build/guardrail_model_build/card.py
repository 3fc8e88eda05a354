"""Writes the model card: what a model was made of and how it did, from the build's own records."""

from __future__ import annotations

from collections.abc import Mapping

from guardrail_model_build.bases import stored_types
from guardrail_model_build.bert import BertConfig
from guardrail_model_build.findings import Figures
from guardrail_model_build.reports import (
    DataReport,
    EvaluationReport,
    PruneReport,
    TrainingReport,
)
from guardrail_model_build.scores import VALIDATION
from guardrail_model_build.thresholds import SIDES
from guardrail_model_build.workspace import Workspace
from guardrail_sdk.artifact import Manifest
from guardrail_sdk.evaluation import Interval

_HEADINGS = {
    "ship": "Licences under which weights trained on the data may be shipped",
    "ship-with-notice": "Ship with notice: the licence is permissive, but texts or labels were "
    "written by models whose\nproviders' terms may reach them",
    "own": "Written for this project, by a language model under the project's labelling rules",
}
_STAGES = {
    "teacher": "teacher: base, fine-tuned",
    "pruned": "pruned, not trained again",
    "distilled": "distilled from the teacher",
    "qat": "trained in INT4/INT8 (PyTorch)",
    "onnx": "INT4 ONNX, as shipped",
}
_DEQUANTISED = """

The base's weights were read from a file that holds them quantised ({types}) and dequantised
before training: the original floating-point weights were not at hand."""


def model_card(workspace: Workspace, manifest: Manifest) -> str:
    """Return the card of a packed model, in Markdown."""
    parts = [
        _what(workspace, manifest),
        _recipe(workspace),
        _data(workspace, manifest),
        _figures(workspace, manifest),
        _limits(workspace),
    ]
    return "\n\n".join(parts) + "\n"


def _what(workspace: Workspace, manifest: Manifest) -> str:
    size = workspace.report("pruned", PruneReport).parameters
    block = manifest.quantisation and manifest.quantisation.block_size
    types = stored_types(workspace.recipe.base)
    origin = _DEQUANTISED.format(types=", ".join(types)) if types else ""
    return f"""# {manifest.name} {manifest.version}

A guard model: it reads a conversation and says how likely its last message is unsafe, and which
hazards S1 to S14 of the MLCommons taxonomy (as Llama Guard 3 codes them) it touches. It runs on a
CPU with onnxruntime, through guardrail-sdk.

| | |
| --- | --- |
| base | {manifest.provenance.base} ({manifest.provenance.base_licence}) |
| licence of these weights | Apache-2.0 |
| parameters | {size / 1e6:.1f} M, of which the embedding is not computed with |
| weights | INT4, symmetric, blocks of {block}; norms and \
the {len(manifest.outputs)} output rows float32 |
| activations | INT8, symmetric per row and block, quantised on the fly |
| context | {manifest.context_length} tokens; longer texts are judged in overlapping windows |
| template | `{manifest.template}` |{origin}"""


def _recipe(workspace: Workspace) -> str:
    recipe = workspace.recipe
    name = recipe.name.removeprefix("guard-")
    pruned = workspace.report("pruned", PruneReport)
    blocks = ", ".join(map(str, pruned.blocks_kept))
    before, after = pruned.parameters_before / 1e6, pruned.parameters / 1e6
    teacher, distilled, qat = (
        workspace.report(stage, TrainingReport).tokens for stage in ("teacher", "distilled", "qat")
    )
    lowest = recipe.finetune.frozen_blocks
    frozen = f"s and its lowest {lowest} blocks" if lowest else "s"
    count = recipe.teachers
    several = (
        f", {count} times in {count} orders: the mean of weights and logits," if count > 1 else ""
    )
    return f"""## How it was made

By `model_build/recipes/{name}.yaml`, after *Llama Guard 3-1B-INT4*
(arXiv 2411.17713), seed {recipe.seed}:

1. {_reduced(workspace)}
2. The teacher is the whole base, fine-tuned{several} on {teacher:,} tokens; its word
   embedding{frozen} stayed as they were. So it is of the student's own size,
   where the paper distils from a model seven times as large.
3. Kept were {recipe.prune.mlp} MLP neurons a block (by mean l2 norm) and these blocks (by
   1 - E[cos(x_in, x_out)]): {blocks}.
   {before:.1f} M parameters became {after:.1f} M.
4. The student learned from the labels and the teacher's logits (forward KL) on
   {distilled:,} tokens in floating point, then on {qat:,} tokens with its forward
   pass rounded exactly as MatMulNBits rounds at accuracy_level 4.
5. Those integers were packed into the ONNX file as they were."""


def _reduced(workspace: Workspace) -> str:
    """Say what was cut before anything was trained."""
    config = workspace.checkpoint("qat").config
    if isinstance(config, BertConfig):
        return (
            f"The vocabulary was cut to {config.vocab_size:,} pieces, and a head of "
            f"{config.outputs} rows put on the\n   attentively pooled states of the judged message."
        )
    return f"The unembedding was cut to {config.outputs} rows."


def _data(workspace: Workspace, manifest: Manifest) -> str:
    by_use = manifest.provenance.data_by_use
    data = workspace.report("data", DataReport)
    lines = ["## What it was trained on", ""]
    for use, heading in _HEADINGS.items():
        if use not in by_use:
            continue
        lines += [f"{heading} ({by_use[use]:,} rows):", ""]
        lines += ["| source | rows | licence |", "| --- | --- | --- |"]
        for name, count in data.sources_by_use[use].items():
            lines.append(f"| {name} | {count:,} | {data.licences[name]} |")
        lines.append("")
    if unknown := sorted(set(by_use) - set(_HEADINGS)):
        raise ValueError(f"Rows whose use is {unknown} may not train weights that ship.")
    closing = [
        "Nothing else was used: no row of a benchmark's test set, and no row whose licence forbids",
        "commercial use.",
    ]
    return "\n".join([*lines, *closing])


def _figures(workspace: Workspace, manifest: Manifest) -> str:
    found = workspace.report("evaluated", EvaluationReport)
    lines = [
        "## How it does",
        "",
        f"Every step of the build, on the same {found.rows:,} rows of the validation split. Each",
        "step is read at the threshold that the recipe's rule finds for it.",
        "Brackets hold 95 % intervals of a bootstrap over the rows.",
        "",
        "| step | judged | F1 | recall | FPR | AUPRC | ECE | verdicts changed by the step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, sides in found.steps.items():
        for side in SIDES:
            if side in sides:
                flips = found.flips.get(name, {}).get(side)
                changed = "-" if flips is None else f"{flips:.1%}"
                cells = " | ".join(_step_cells(sides[side]))
                lines.append(f"| {_STAGES.get(name, name)} | {side} | {cells} | {changed} |")
    lines += ["", *_quantised(found), *_presets(found), *_partial(found)]
    if found.evaluation:
        lines += _public(found.evaluation, manifest)
    return "\n".join(lines)


def _step_cells(row: Figures) -> list[str]:
    return [
        _ranged(row.f1, row.f1_interval),
        _number(row.recall),
        _ranged(row.fpr, row.fpr_interval),
        _number(row.auprc),
        _number(row.ece),
    ]


def _quantised(found: EvaluationReport) -> list[str]:
    """Say what INT4 cost, and how far the ONNX file is from the PyTorch model."""
    cost = found.quantisation
    one = cost.overall["both"]
    return [
        f"INT4 against the same student in float32 (`{cost.student}`), {one.rows:,} rows of all",
        f"sets: F1 {_signed(one.f1, one.f1_interval)}, FPR {_signed(one.fpr, one.fpr_interval)}"
        " (paired",
        f"bootstrap); {one.flips:.1%} of the verdicts differ.",
        "The ONNX file's verdict logits differ from the PyTorch model's by "
        f"{cost.mean_difference:.1e} on average, {cost.largest_difference:.1e} at most:",
        "an activation on a rounding tie falls to either side by float noise, and others follow.",
    ]


def _presets(found: EvaluationReport) -> list[str]:
    lines = [
        "",
        "Thresholds on P(unsafe), with what they gave on validation; `balanced` is the default.",
        "",
        "| preset | judged | threshold | FPR | recall | F1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for preset, sides in found.presets.items():
        for side, row in sides.items():
            figures = [row.fpr[VALIDATION], row.recall[VALIDATION], row.f1[VALIDATION]]
            cells = " | ".join(map(_number, figures))
            lines.append(f"| {preset} | {side} | {row.threshold:.4g} | {cells} |")
    return lines


def _partial(found: EvaluationReport) -> list[str]:
    partial = found.partial
    if partial is None or partial.characters is None or partial.never is None:
        return []
    share = "-" if partial.safe_flagged is None else f"{partial.safe_flagged:.1%}"
    return [
        "",
        f"Unfinished responses ({partial.rows} of validation, judged at each tenth): the first",
        f"flag of an unsafe one comes after at most {partial.characters:,.0f} characters (median);"
        f" {partial.never:.1%}",
        f"are never flagged; {share} of the safe ones are flagged at some point.",
    ]


def _public(reports: Mapping[str, Figures], manifest: Manifest) -> list[str]:
    thresholds = " and ".join(
        f"{manifest.thresholds[stage].unsafe:.2f} ({stage})" for stage in manifest.thresholds
    )
    lines = [
        "",
        f"Public test sets, at the shipped thresholds {thresholds}, which validation set.",
        "",
        '| set | rows | F1 | precision | recall | FPR | AUPRC | always "unsafe" F1 |',
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in reports.items():
        cells = [
            _ranged(row.f1, row.f1_interval),
            _number(row.precision),
            _ranged(row.recall, row.recall_interval),
            _ranged(row.fpr, row.fpr_interval),
            _number(row.auprc),
            _number(row.always_unsafe_f1),
        ]
        lines.append(f"| {name} | {row.rows:,} | {' | '.join(cells)} |")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ranged(value: float | None, ends: Interval | None) -> str:
    return _number(value) + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


def _signed(value: float | None, ends: Interval | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" + ("" if ends is None else f" [{ends[0]:+.3f}, {ends[1]:+.3f}]")


def _limits(workspace: Workspace) -> str:
    longest = workspace.recipe.data.max_answer_tokens
    return f"""## Limits

- It is small, and it was trained on few tokens. It reads English best; the report's figures by
  language say what to expect of others. Try yours before you rely on it.
- It misses attacks and it flags harmless texts; the tables above say how often. It is one layer of
  a defence, not the whole of it.
- The hazards' own scores are weak, since few unsafe rows name their hazard: take the category of
  a block as a hint. S5, S6, S7, S8 and S13 have the fewest rows.
- System messages are not read, and there are few conversations in the data: what only earlier turns
  make unsafe is often missed.
- Its own rows and their labels come from one writer's hand: real traffic is more varied.
- Intended use: one layer of moderation for chat apps, beside the app's own rules. Not intended: to
  judge people, to decide alone in matters of law, health or employment, to monitor speech.
- Answers were cut at {longest} tokens in training: what comes late in a long answer is
  judged in windows that the model has seen less of.
- Scores are calibrated on a validation split of the training sources; on other text they are
  scores, not frequencies."""
