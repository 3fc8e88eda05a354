"""Stage `data`: choose, label, cut and split the rows that train and validate.

The folder that is read holds `*.jsonl.gz` files and a `manifest.json` that says, per file, what
it may be used for (docs/data-format.md). Nothing whose split is `eval` is ever read.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from guardrail_model_build.recipe import Data, Source
from guardrail_model_build.workspace import Metrics, Workspace
from guardrail_sdk import Message
from guardrail_sdk.evaluation import Row, read_rows


def run(workspace: Workspace, out: Path) -> Metrics:
    """Write `train.jsonl.gz` and `validation.jsonl.gz` into `out`.

    Returns:
        Rows and tokens by split and by `use`, and a hash over both files.

    Raises:
        ValueError: If the recipe names a file that isn't there, or no row is left.
    """
    recipe, source = workspace.recipe, workspace.data
    about = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    encoder = Tokenizer.from_buffer(workspace.checkpoint("base").tokenizer)
    encoder.encode_special_tokens = True
    allowed = {
        name: entry["use"]
        for name, entry in about.items()
        if entry["split"] == "train" and entry["use"] in recipe.data.uses
    }
    unknown = sorted(set(recipe.data.sources) - set(about))
    if unknown:
        raise ValueError(f"The recipe names {unknown}, which {source}/manifest.json doesn't list.")
    rows = [
        _cut(row, encoder, recipe.data)
        for name in sorted(allowed)
        for row in _chosen(source / "train" / f"{name}.jsonl.gz", recipe.data.sources.get(name))
    ]
    rows = _distinct(rows)
    validation = [row for row in rows if _rank(row.id) < recipe.data.validation_share]
    training = [row for row in rows if _rank(row.id) >= recipe.data.validation_share]
    training = _within_budget(training, encoder, recipe.data.token_budget)
    if not training or not validation:
        raise ValueError(f"{source} holds no rows for the uses {recipe.data.uses}.")
    digest = hashlib.sha256()
    for name, split in (("train", training), ("validation", validation)):
        digest.update(_write(out / f"{name}.jsonl.gz", split))
    return {
        "rows": {"train": len(training), "validation": len(validation)},
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


def load_split(folder: Path, split: str) -> list[Row]:
    """Return the rows of one split that `run` wrote."""
    return list(read_rows(folder / f"{split}.jsonl.gz"))


def sample(rows: Sequence[Row], count: int) -> list[Row]:
    """Return at most `count` rows, the same ones every time, spread over the sources."""
    by_source: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _rank("sample" + row.id)):
        by_source.setdefault(row.source, []).append(row)
    share = count / max(count, len(rows))
    return [
        row for group in by_source.values() for row in group[: max(1, round(share * len(group)))]
    ]


def _chosen(path: Path, source: Source | None) -> Iterator[Row]:
    source = source or Source()
    rows = [labelled for row in read_rows(path) for labelled in _labelled(row, source)]
    rows.sort(key=lambda row: _rank("choose" + row.id))
    yield from rows if source.rows is None else rows[: source.rows]


def _labelled(row: Row, source: Source) -> Iterator[Row]:
    """Yield `row` with the label that the recipe gives it, if any, and its prompt if asked."""
    if row.unsafe is None and row.note in source.safe_notes:
        row = row.model_copy(update={"unsafe": False})
    if row.unsafe is None and set(row.categories) & set(source.unsafe_categories):
        row = row.model_copy(update={"unsafe": True})
    if row.unsafe is not None or row.categories:
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
    """Shorten every message to its cap: a training row's tokens are the run's cost."""
    messages = tuple(
        Message(
            role=message.role,
            content=_head(
                message.content,
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
    for row in sorted(rows, key=lambda row: _rank("budget" + row.id)):
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


def _rank(text: str) -> float:
    """Return a number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _write(path: Path, rows: Sequence[Row]) -> bytes:
    """Write `rows` to a gzip file without a time stamp and return their digest."""
    lines = "".join(row.model_dump_json(exclude_none=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines, mtime=0))
    return hashlib.sha256(lines).digest()
