"""The small runs that settings are chosen by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_recipe, write_base, write_data

from guardrail_model_build import experiments
from guardrail_model_build.pipeline import build
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.workspace import Workspace


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """An encoder build up to its importances."""
    folder = tmp_path_factory.mktemp("experiments")
    recipe = tiny_recipe(write_base(folder / "pretrained", "segments"), "segments")
    plan = {
        "rows": 60,
        "tokens": 800,
        "search": [{"learning_rate": 1e-9}],
        "curve": [{"blocks": 3, "mlp": 128}, {"blocks": 1, "mlp": 32}],
        "shares": [0.25, 1],
    }
    workspace = Workspace(
        recipe=Recipe.model_validate(recipe.model_dump() | {"experiments": plan}),
        data=(write_data(folder / "data"),),
        folder=folder / "out",
    )
    build(workspace, until="importance")
    return workspace


def test_a_rate_of_nothing_learns_nothing(measured: Workspace) -> None:
    usual, none = experiments.run(measured, "search")
    assert none.name == "learning_rate 1e-09"
    assert usual.auprc["input"] > none.auprc["input"] + 0.1


def test_the_curve_prunes_to_every_size_on_as_many_tokens(measured: Workspace) -> None:
    whole, small = experiments.run(measured, "curve")
    assert small.parameters < whole.parameters / 2
    assert whole.tokens == small.tokens <= 800
    assert whole.milliseconds is not None
    assert whole.milliseconds > 0


def test_the_curve_of_data_reads_each_share_of_the_rows_once(measured: Workspace) -> None:
    quarter, whole = experiments.run(measured, "data")
    tokens = measured.metrics("teacher")["tokens"]
    assert tokens == whole.tokens * measured.recipe.finetune.epochs
    assert 0.15 < quarter.tokens / whole.tokens < 0.35


def test_f1_is_taken_at_the_threshold_that_is_best_on_validation(measured: Workspace) -> None:
    usual, none = experiments.run(measured, "search")
    rows = [
        row
        for row in experiments.load_split(measured.stage("data"), "validation")
        if row.target == "user" and row.unsafe is not None
    ]
    unsafe = sum(bool(row.unsafe) for row in rows)
    # Flagging everything is always possible, so that the best threshold does at least as well.
    everything = 2 * unsafe / (len(rows) + unsafe)
    assert none.f1["input"] >= round(everything, 4) - 1e-4
    assert usual.f1["input"] > everything


def test_the_best_threshold_has_the_highest_f1() -> None:
    unsafe = np.array([False, False, True, True])
    margins = np.array([0.0, 2.0, 1.0, 3.0], np.float32)
    assert experiments._best_threshold(unsafe, margins) == 1  # pyright: ignore[reportPrivateUsage]


def test_research_rows_are_only_in_the_second_run(measured: Workspace) -> None:
    ships, more = experiments.run(measured, "research")
    assert more.tokens > ships.tokens
    trained = {row.source for row in experiments.load_split(measured.stage("data"), "train")}
    assert "secret" not in trained


def test_a_finished_run_is_read_again(
    measured: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = experiments.run(measured, "search")

    def never(*_: object, **__: object) -> dict[str, float]:
        raise AssertionError("ran again")

    monkeypatch.setattr(experiments, "fit", never)
    assert experiments.run(measured, "search") == first


def test_the_command_prints_and_keeps_the_table(
    measured: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(measured.recipe.model_dump_json())
    data = [str(folder) for folder in measured.data]
    experiments.main(["search", str(recipe), "--data", *data, "--out", str(measured.folder)])
    assert "learning_rate 1e-09" in " ".join(capsys.readouterr().out.split())
    kept = json.loads((measured.stage("experiments") / "search.json").read_text())
    assert [one["name"] for one in kept] == ["as in the recipe", "learning_rate 1e-09"]
