"""Stage `data`: choose, label, cut and split the rows that train and validate.

The folders that are read hold `*.jsonl` or `*.jsonl.gz` files and a `manifest.json` that says, per
file, what it may be used for (docs/data-format.md). Nothing whose split is `eval` is ever trained
on: what is to be evaluated on is only read to drop the rows that overlap with it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from guardrail_model_build.augment import augmented, rank
from guardrail_model_build.overlap import without_overlap
from guardrail_model_build.recipe import Data, Source
from guardrail_model_build.workspace import Metrics, Workspace
from guardrail_sdk import Category, Message
from guardrail_sdk.evaluation import Row, read_rows

_MARKERS = re.compile(r"<\|(?:eot_id|im_end|im_start|endoftext)\|>|</?s>")


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write `train.jsonl.gz` and `validation.jsonl.gz` into `out`.

    Returns:
        Rows and tokens by split and by `use`, and a hash over both files.

    Raises:
        ValueError: If the recipe names a file that isn't there, or no row is left.
    """
    recipe = workspace.recipe
    folders = {name: folder for folder in workspace.data for name in _manifest(folder)}
    if len(folders) < sum(len(_manifest(folder)) for folder in workspace.data):
        raise ValueError("Two folders of data list a file of the same name: rename one.")
    about = {name: entry for folder in workspace.data for name, entry in _manifest(folder).items()}
    encoder = Tokenizer.from_buffer(workspace.checkpoint("base").tokenizer)
    encoder.encode_special_tokens = True
    allowed = {
        name: entry["use"]
        for name, entry in about.items()
        if entry["split"] == "train" and entry["use"] in recipe.data.uses
    }
    unknown = sorted(set(recipe.data.sources) - set(about))
    if unknown:
        raise ValueError(f"The recipe names {unknown}, which no manifest.json lists.")
    corrections = {row: fix for folder in workspace.data for row, fix in _corrections(folder)}
    rows = [
        _cut(row, encoder, recipe.data)
        for name in sorted(allowed)
        for row in _chosen(_file(folders[name], name), recipe.data.sources.get(name), corrections)
    ]
    rows = _distinct(rows)
    twice = [row for row, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"Two rows have the id {twice[0]!r}: logits and labels go by it.")
    evaluated = [row for path in workspace.evaluation for row in read_rows(path)]
    kept = without_overlap(rows, evaluated)
    share = recipe.data.validation_share
    training = [row for row in kept if _place(row) >= share]
    # Templated sources repeat themselves, and what training has seen proves nothing.
    validation = without_overlap([row for row in kept if _place(row) < share], training)
    training = augmented(training, recipe.data.context_share, recipe.data.prefix_share)
    training = _within_budget(training, encoder, recipe.data.token_budget)
    if not training or not validation:
        raise ValueError(f"The data holds no rows for the uses {recipe.data.uses}.")
    digest = hashlib.sha256()
    for name, split in (("train", training), ("validation", validation)):
        digest.update(_write(out / f"{name}.jsonl.gz", split))
    return {
        "rows": {"train": len(training), "validation": len(validation)},
        "dropped_as_overlap": len(rows) - len(kept),
        "corrected": len(corrections),
        "tokens": sum(_length(row, encoder) for row in training),
        "by_use": dict(Counter(allowed[row.source] for row in training)),
        "sources_by_use": {
            use: dict(
                sorted(
                    Counter(row.source for row in training if allowed[row.source] == use).items()
                )
            )
            for use in recipe.data.uses
        },
        "licences": {
            name: about[name].get("licence", "not stated")
            for name in sorted({row.source for row in training})
        },
        "by_label": dict(Counter(f"{row.target} {row.unsafe}" for row in training)),
        "sha256": digest.hexdigest(),
    }


def files(workspace: Workspace) -> list[Path]:
    """Return every file that the rows of a build come from, manifests and corrections too."""
    return [
        path
        for folder in workspace.data
        for path in (
            folder / "manifest.json",
            folder / "corrections.jsonl",
            *(_file(folder, name) for name in sorted(_manifest(folder))),
        )
        if path.exists()
    ]


def load_split(folder: Path, split: str) -> list[Row]:
    """Return the rows of one split that `run` wrote."""
    return list(read_rows(folder / f"{split}.jsonl.gz"))


def research_rows(workspace: Workspace) -> list[Row]:
    """Return the rows whose use is `research`, cut as training rows are.

    They may show what they would add; no weights that ship are trained on them.
    """
    recipe = workspace.recipe
    encoder = Tokenizer.from_buffer(workspace.checkpoint("base").tokenizer)
    evaluated = [row for path in workspace.evaluation for row in read_rows(path)]
    rows = [
        row
        for folder in workspace.data
        for name, entry in sorted(_manifest(folder).items())
        if entry["split"] == "train" and entry["use"] == "research"
        for row in _chosen(_file(folder, name), None, {})
        if row.unsafe is not None
    ]
    return [_cut(row, encoder, recipe.data) for row in without_overlap(_distinct(rows), evaluated)]


def student_rows(workspace: Workspace) -> list[Row]:
    """Return the training rows that the student learns from: the teacher is asked about each."""
    rows = load_split(workspace.stage("data"), "train")
    count = workspace.recipe.student_rows
    return rows if count is None else sample(rows, count)


def sample(rows: Sequence[Row], count: int) -> list[Row]:
    """Return at most `count` rows, the same ones every time, spread over the sources."""
    by_source: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: rank("sample" + row.id)):
        by_source.setdefault(row.source, []).append(row)
    if not rows or count < 1:
        return []
    share = count / max(count, len(rows))
    return [
        row for group in by_source.values() for row in group[: max(1, round(share * len(group)))]
    ]


class Correction(BaseModel):
    """What a reader of the data found wrong with a row; one line of `corrections.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    unsafe: bool | None = None
    """The right label; None to leave the row out."""
    categories: tuple[Category, ...] | None = None
    """The right hazards; None to keep those that there are, for a row that stays unsafe."""


def _manifest(folder: Path) -> dict[str, dict[str, str]]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _file(folder: Path, name: str) -> Path:
    packed = folder / "train" / f"{name}.jsonl.gz"
    return packed if packed.exists() else folder / f"{name}.jsonl"


def _corrections(folder: Path) -> Iterator[tuple[str, Correction]]:
    path = folder / "corrections.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            found = Correction.model_validate_json(line)
            yield found.id, found


def _chosen(
    path: Path, source: Source | None, corrections: Mapping[str, Correction]
) -> Iterator[Row]:
    source = source or Source()
    # The cap counts rows as they lie in the file: those that were read and left out don't make
    # room for others that nobody has read.
    rows = sorted(read_rows(path), key=lambda row: rank("choose" + row.id))
    for row in rows if source.rows is None else rows[: source.rows]:
        for corrected in _corrected(row, corrections.get(row.id)):
            yield from _labelled(corrected, source)


def _corrected(row: Row, fix: Correction | None) -> Iterator[Row]:
    """Yield `row` as its reader corrected it, if at all; nothing if it is to be left out."""
    if fix is None:
        yield row
    elif fix.unsafe is not None:
        own = row.categories if fix.categories is None else fix.categories
        categories = own if fix.unsafe else ()
        yield row.model_copy(update={"unsafe": fix.unsafe, "categories": categories})


def _labelled(row: Row, source: Source) -> Iterator[Row]:
    """Yield `row` with the label that the recipe gives it, if any, and its prompt if asked."""
    if row.unsafe is None and row.note in source.safe_notes:
        row = row.model_copy(update={"unsafe": False})
    if row.unsafe is None and set(row.categories) & set(source.unsafe_categories):
        row = row.model_copy(update={"unsafe": True})
    wanted = source.only is None or row.unsafe is (source.only == "unsafe")
    if wanted and (row.unsafe is not None or row.categories):
        yield row
    if source.prompts is not None and row.target == "assistant":
        yield row.model_copy(
            update={
                "id": f"{row.id}-prompt",
                "messages": row.messages[:-1],
                "target": "user",
                "unsafe": source.prompts == "unsafe",
                "categories": (),
            }
        )


def _cut(row: Row, encoder: Tokenizer, data: Data) -> Row:
    """Shorten every message to its cap: a training row's tokens are the run's cost.

    Chat markers that the models behind some data sets left in their answers are taken out.
    """
    messages = tuple(
        Message(
            role=message.role,
            content=_head(
                _MARKERS.sub("", message.content).strip(),
                encoder,
                data.max_answer_tokens if message.role == "assistant" else data.max_prompt_tokens,
            ),
        )
        for message in row.messages
    )
    return row.model_copy(update={"messages": messages})


def _head(text: str, encoder: Tokenizer, tokens: int) -> str:
    offsets = encoder.encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Drop rows that repeat another's words; where their labels differ, drop both."""
    labels: dict[tuple[str, ...], set[bool | None]] = {}
    for row in rows:
        labels.setdefault(_words(row), set()).add(row.unsafe)
    kept: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if len(labels[_words(row)]) == 1:
            kept.setdefault(_words(row), row)
    return list(kept.values())


def _words(row: Row) -> tuple[str, ...]:
    return (row.target, *(" ".join(message.content.lower().split()) for message in row.messages))


def _within_budget(rows: Sequence[Row], encoder: Tokenizer, budget: int) -> list[Row]:
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: rank("budget" + row.id)):
        budget -= _length(row, encoder)
        if budget < 0:
            break
        kept.append(row)
    return kept


def _length(row: Row, encoder: Tokenizer) -> int:
    """Return the tokens of a row's messages, and about as many as the template adds."""
    return 8 + sum(
        4 + len(encoder.encode(message.content, add_special_tokens=False).ids)
        for message in row.messages
    )


def _place(row: Row) -> float:
    """Return where a row stands between the splits: answers to one prompt stand together."""
    return rank("split" + " ".join(row.messages[0].content.lower().split()))


def _write(path: Path, rows: Sequence[Row]) -> bytes:
    """Write `rows` to a gzip file without a time stamp and return their digest."""
    lines = "".join(row.model_dump_json(exclude_none=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines, mtime=0))
    return hashlib.sha256(lines).digest()
