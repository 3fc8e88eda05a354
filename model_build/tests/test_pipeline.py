"""Whole builds on tiny random weights, for every template."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_base, write_data
from torch import Tensor

from guardrail_model_build import finetune
from guardrail_model_build.checkpoint import Checkpoint
from guardrail_model_build.cli import main
from guardrail_model_build.pipeline import STAGES, build
from guardrail_model_build.recipe import Recipe
from guardrail_model_build.reports import DataReport, EvaluationReport
from guardrail_model_build.thresholds import SIDES
from guardrail_model_build.train import fit
from guardrail_model_build.workspace import Workspace
from guardrail_sdk.artifact import open_artifact
from guardrail_sdk.prompt import TemplateId, template

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(scope="module", params=["compact", "segments", "llama-guard-3"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished build, reported on a file that it never trained on."""
    template_id: TemplateId = request.param
    folder = tmp_path_factory.mktemp("build")
    base = write_base(folder / "pretrained", template_id)
    data = write_data(folder / "data")
    workspace = Workspace(
        recipe=tiny_recipe(base, template_id),
        data=(data,),
        evaluation=(data / "train" / "secret.jsonl.gz",),
        folder=folder / "out",
    )
    build(workspace)
    return workspace


def test_the_packed_model_tells_the_cruel_from_the_kind(built: Workspace) -> None:
    report = built.report("evaluated", EvaluationReport).evaluation["secret"]
    assert report.auprc is not None
    assert report.auprc > 0.75, "half of the rows are cruel, so chance is 0.5"


def test_the_manifest_says_where_the_model_comes_from(built: Workspace) -> None:
    manifest = open_artifact(built.stage("packed") / "tiny").manifest
    assert manifest.outputs == template(built.recipe.template).outputs
    assert manifest.layers == 2
    provenance = manifest.provenance
    assert provenance.recipe_sha256 == built.recipe.sha256()
    assert set(provenance.data_by_use) == {"ship", "ship-with-notice"}
    assert provenance.data_sha256 == built.report("data", DataReport).sha256


def test_every_step_is_in_one_table(built: Workspace) -> None:
    found = built.report("evaluated", EvaluationReport)
    assert list(found.steps) == ["teacher", "pruned", "distilled", "qat", "onnx"]
    assert "secret" in found.evaluation


def test_the_onnx_file_computes_what_training_computed(built: Workspace) -> None:
    assert built.report("evaluated", EvaluationReport).quantisation.mean_difference < 2e-3
    # A value on a rounding tie of INT8 may fall to either side, which moves single logits.
    assert built.report("evaluated", EvaluationReport).quantisation.largest_difference < 0.05


def test_verdicts_agree_with_the_students(built: Workspace) -> None:
    """Closely with the one trained in INT4; with the floating-point one as far as 4 bits of so
    small a model can.
    """
    steps = built.report("evaluated", EvaluationReport).steps
    assert list(steps["onnx"]) == ["input", "output", "both"]
    for side in SIDES:
        onnx, qat, distilled = (steps[name][side].auprc for name in ("onnx", "qat", "distilled"))
        assert onnx is not None
        assert qat is not None
        assert distilled is not None
        assert abs(onnx - qat) < 0.05
        assert onnx > distilled - 0.35


def test_the_card_shows_the_data_and_the_figures(built: Workspace) -> None:
    card = (built.stage("packed") / "tiny" / "MODEL_CARD.md").read_text()
    assert "| prompts | " in card
    assert "secret" not in card.partition("## How it does")[0]
    assert "| INT4 ONNX, as shipped | input |" in card
    assert "| secret | " in card


def test_a_finished_build_runs_nothing_again(
    built: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(workspace: Workspace, out: Path) -> dict[str, object]:
        raise AssertionError(f"{out.name} ran again")

    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, run=never))
    build(built)


def _what_runs(built: Workspace, changed: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the stages that `changed` would run again, and leave `built` as it is."""
    ran: list[str] = []

    def note(workspace: Workspace, out: Path) -> dict[str, object]:
        ran.append(out.name)
        return {}

    for name, stage in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(stage, run=note))
    markers = {name: (built.stage(name) / "stage.json").read_text() for name in STAGES}
    try:
        build(changed)
    finally:
        for name, text in markers.items():
            (built.stage(name) / "stage.json").write_text(text)
    return ran


def test_a_changed_setting_runs_what_depends_on_it_and_nothing_else(
    built: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate(
        built.recipe.model_dump() | {"prune": built.recipe.prune.model_dump() | {"mlp": 64}}
    )
    ran = _what_runs(built, replace(built, recipe=recipe), monkeypatch)
    assert ran == ["pruned", "distilled", "qat", "exported", "evaluated", "packed"]


def test_a_changed_row_runs_all_but_the_base(
    built: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(built.data[0], folder)
    path = folder / "train" / "prompts.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[1:])))
    ran = _what_runs(built, replace(built, data=(folder,)), monkeypatch)
    assert ran == [name for name in STAGES if name != "base"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    recipe = Recipe.load(path)
    assert "research" not in recipe.data.uses, "what ships is trained on what may ship"


def test_an_unknown_key_in_a_recipe_is_refused(tmp_path: Path) -> None:
    text = (RECIPES / "smollm2-135m-int4.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text + "\nlearning_rte: 1\n")
    with pytest.raises(SystemExit, match="learning_rte"):
        main([str(wrong), "--data", str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_command_stops_where_it_is_told(tmp_path: Path) -> None:
    base = write_base(tmp_path / "pretrained", "compact")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe(base, "compact").model_dump_json())
    data = write_data(tmp_path / "data", count=40)
    out = tmp_path / "out"
    main([str(recipe), "--data", str(data), "--out", str(out), "--until", "data"])
    assert (out / "data" / "train.jsonl.gz").exists()
    assert not (out / "teacher").exists()


def test_several_teachers_are_averaged_and_a_finished_one_is_not_taught_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(write_base(tmp_path / "pretrained", "segments"), "segments")
    data = write_data(tmp_path / "data")

    def taught(teachers: int, out: str) -> Path:
        asked = Recipe.model_validate(recipe.model_dump() | {"teachers": teachers})
        workspace = Workspace(recipe=asked, data=(data,), folder=tmp_path / out)
        build(workspace, until="teacher")
        return workspace.stage("teacher")

    def weights(folder: Path) -> Tensor:
        return Checkpoint.load(folder).weights["head.weight"]

    one = taught(1, "out")
    alone, alone_logits = weights(one), torch.load(one / "logits.pt")
    titles: list[str] = []
    monkeypatch.setattr(
        finetune,
        "fit",
        lambda *given, **named: titles.append(named["title"]) or fit(*given, **named),
    )
    two = taught(2, "out")
    assert titles == ["fine-tuning teacher 2"]
    members = [weights(path.parent) for path in two.glob("*/metrics.json")]
    assert len(members) == 2
    torch.testing.assert_close(weights(two), (members[0] + members[1]) / 2)
    assert not torch.equal(members[0], members[1])
    assert any(torch.equal(member, alone) for member in members)
    logits = torch.load(two / "logits.pt")
    assert logits.keys() == alone_logits.keys()
    # Of outputs, not of weights: the mean model's own logits are others.
    other = {name: 2 * mean - alone_logits[name] for name, mean in logits.items()}
    assert all(float((other[name] - mean).abs().max()) < 20 for name, mean in logits.items())
    assert any(not torch.equal(other[name], mean) for name, mean in logits.items())
