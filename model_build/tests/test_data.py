"""What trains and validates: licence, labels, cuts, splits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from guardrail_model_build import bases, data
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.workspace import Workspace
from guardrail_sdk.evaluation import Row


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    bases.run(workspace, workspace.stage("base"))
    return workspace


def _with_data(workspace: Workspace, **changes: object) -> Workspace:
    recipe = workspace.recipe
    changed = Recipe.model_validate(
        recipe.model_dump() | {"data": recipe.data.model_dump() | changes}
    )
    return Workspace(recipe=changed, data=workspace.data, folder=workspace.folder)


def _splits(workspace: Workspace) -> dict[str, list[Row]]:
    out = workspace.stage("data")
    data.run(workspace, out)
    return {split: data.load_split(out, split) for split in ("train", "validation")}


def test_only_rows_whose_use_is_allowed_are_taken(prepared: Workspace) -> None:
    splits = _splits(prepared)
    sources = {row.source for rows in splits.values() for row in rows}
    assert sources == {"prompts", "answers", "domains"}


def test_splits_are_disjoint_and_the_same_every_time(prepared: Workspace) -> None:
    first, second = _splits(prepared), _splits(prepared)
    assert first == second
    train, validation = ({row.id for row in first[name]} for name in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation


def test_validation_shares_no_sentence_with_training(prepared: Workspace) -> None:
    path = prepared.data[0] / "train" / "prompts.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    stem = "Please write me a short and friendly note for neighbour number"
    templated = [
        {
            **rows[0],
            "id": f"t{number}",
            "messages": [{"role": "user", "content": f"{stem} {number}"}],
        }
        for number in range(50)
    ]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *templated])
    path.write_bytes(gzip.compress(text.encode()))
    splits = _splits(prepared)
    assert any(stem in row.messages[0].content for row in splits["train"])
    assert not any(stem in row.messages[0].content for row in splits["validation"])
    assert splits["validation"]


def test_a_row_without_a_label_gets_the_recipes_or_stays_without(prepared: Workspace) -> None:
    rows = [row for rows in _splits(prepared).values() for row in rows if row.source == "domains"]
    labels = {(row.categories[0].value, row.unsafe) for row in rows}
    assert labels == {("S9", True), ("S6", None)}


def test_training_rows_keep_within_the_token_budget(prepared: Workspace) -> None:
    small = _with_data(prepared, token_budget=1_000)
    report = data.run(small, small.stage("data"))
    assert 800 < int(str(report["tokens"])) <= 1_000


def test_long_messages_are_cut_to_their_roles_cap(prepared: Workspace) -> None:
    caps = {"user": 14, "assistant": 10}
    rows = _splits(_with_data(prepared, max_prompt_tokens=14, max_answer_tokens=10))["train"]
    tokenizer = Tokenizer.from_buffer(prepared.checkpoint("base").tokenizer)
    for role, cap in caps.items():
        lengths = [
            len(tokenizer.encode(message.content).ids)
            for row in rows
            for message in row.messages
            if message.role == role
        ]
        assert max(lengths) == cap


def test_rows_that_disagree_about_the_same_words_are_dropped(
    prepared: Workspace, tmp_path: Path
) -> None:
    path = prepared.data[0] / "train" / "prompts.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    first = json.loads(lines[0])
    opposite = first | {"id": "again", "unsafe": not first["unsafe"], "categories": []}
    path.write_bytes(gzip.compress("\n".join([*lines, json.dumps(opposite)]).encode()))
    ids = {row.id for rows in _splits(prepared).values() for row in rows}
    assert first["id"] not in ids
    assert "again" not in ids


def test_prompts_of_responses_become_rows_of_their_own(prepared: Workspace) -> None:
    wider = _with_data(prepared, sources={"answers": {"prompts": "safe"}, "prompts": {"rows": 0}})
    rows = [row for rows in _splits(wider).values() for row in rows if row.id.endswith("-prompt")]
    assert rows
    assert all(row.target == "user" and row.unsafe is False for row in rows)
    assert all(len(row.messages) == 1 for row in rows)


def test_a_source_that_is_not_there_is_an_error(prepared: Workspace) -> None:
    wrong = _with_data(prepared, sources={"promtps": {"rows": 1}})
    with pytest.raises(ValueError, match="promtps"):
        data.run(wrong, wrong.stage("data"))


def test_sample_spreads_over_sources_and_is_stable(prepared: Workspace) -> None:
    rows = _splits(prepared)["train"]
    chosen = data.sample(rows, 30)
    assert chosen == data.sample(list(reversed(rows)), 30)
    assert {row.source for row in chosen} == {row.source for row in rows}
    assert 25 <= len(chosen) <= 35
