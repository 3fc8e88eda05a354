"""The model folder: what isn't exactly what its manifest says is refused, and the error helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_sdk._errors import ArtifactError
from guardrail_sdk.artifact import (
    CONTRACT_VERSION,
    MANIFEST,
    MODEL_VARIABLE,
    Thresholds,
    find_artifact,
    hash_files,
    open_artifact,
    write_manifest,
)

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny"
Data = dict[str, object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def read(folder: Path) -> Data:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def write(folder: Path, data: Data) -> None:
    (folder / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("name", ["tiny", "tiny-encoder", "tiny-llama-guard"])
def test_a_sound_folder_opens(name: str) -> None:
    artifact = open_artifact(DATA / name)

    assert artifact.manifest.name == name
    assert artifact.id == f"{name}-0.1.0@{artifact.sha256[:12]}"
    assert artifact.graph.is_file()
    assert artifact.tokenizer.is_file()


LISTED = sorted(json.loads((TINY / MANIFEST).read_text(encoding="utf-8"))["files"])


@pytest.mark.parametrize("name", LISTED)
def test_a_changed_byte_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)

    with pytest.raises(ArtifactError, match=r"was changed: .* Reinstall the model") as caught:
        open_artifact(folder)

    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ArtifactError, match=r"missing or unreadable .* Reinstall the model"):
        open_artifact(folder)


@pytest.mark.parametrize("version", [0, 2, 10**30, -1, 1.5, "1", None, [1], {"a": 1}], ids=repr)
def test_an_unknown_contract_version_is_refused(folder: Path, version: object) -> None:
    write(folder, read(folder) | {"contract_version": version})

    with pytest.raises(ArtifactError, match=f"this guardrail-sdk runs version {CONTRACT_VERSION}"):
        open_artifact(folder)


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def hugging_face(folder: Path) -> None:
    no_manifest(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")


@pytest.mark.parametrize(
    "make",
    [hugging_face, no_manifest, shutil.rmtree],
    ids=["hugging-face", "no-manifest", "absent"],
)
def test_a_folder_of_another_kind_is_refused(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)

    with pytest.raises(ArtifactError, match=r"not a model folder.*Pass a folder made by"):
        open_artifact(folder)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")

    with pytest.raises(ArtifactError, match="not a model folder"):
        open_artifact(file)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "sub/file",
        "..",
        ".",
        "",
        "./model.onnx",
        "sub/../model.onnx",
        "a\0b",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(b"")
    data = read(folder)
    files = data["files"]
    assert isinstance(files, dict)
    files[name] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    write(folder, data)

    with pytest.raises(ArtifactError, match=r"outside its folder|missing or unreadable"):
        open_artifact(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"contract_version":' * 100_000,
        b'{"contract_version": ' + b"9" * 10_000 + b"}",
        b'{"contract_version": 1}',
        b'{"contract_version": 1, "provenance": ' + b"[" * 100_000,
        b'{"contract_version": 1, "metrics": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    ids=lambda content: f"{content[:24]!r}-{len(content)}",
)
def test_a_broken_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)

    with pytest.raises(ArtifactError, match=r"[Bb]uild|Install a matching"):
        open_artifact(folder)


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(content)

        with pytest.raises(ArtifactError):
            open_artifact(Path(folder))


def test_deeply_nested_metrics_are_refused_or_read(folder: Path) -> None:
    """Whatever depth the parsers stop at, it ends in this package's error."""
    data = read(folder)
    for depth in (10, 200, 900, 3000):
        text = json.dumps(data).replace(
            '"metrics": {}', '"metrics": {"deep": ' + "[" * depth + "]" * depth + "}"
        )
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        try:
            assert open_artifact(folder).manifest.provenance.metrics
        except ArtifactError:
            assert depth > 10


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"family": "encoder"}, "family"),
        ({"template": "chatml"}, "template"),
        ({"taxonomy": "own"}, "taxonomy"),
        ({"name": "Has Spaces"}, "name"),
        ({"context_length": 16}, "context_length"),
        ({"context_length": "128"}, "context_length"),
        ({"surprise": 1}, "surprise"),
        ({"outputs": ["safe", "unsafe"]}, "outputs"),
        ({"thresholds": {"input": {"unsafe": 0.5}}}, "stage 'output'"),
        ({"calibration": {}}, "stage 'input'"),
        ({"thresholds": {"input": {"unsafe": 1.5}}}, "thresholds.input.unsafe"),
        ({"thresholds": {"input": {"unsafe": 0.5, "lenient": 0.6}}}, "thresholds.input.lenient"),
        ({"calibration": {"input": {"scale": 0.0}}}, "calibration.input.scale"),
        ({"files": {"model.onnx": "abc"}}, "files.model.onnx"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_breach_of_the_contract_names_its_key(folder: Path, change: Data, where: str) -> None:
    write(folder, read(folder) | change)

    with pytest.raises(ArtifactError, match="breaks the contract") as caught:
        open_artifact(folder)

    assert where in str(caught.value)


FAMILIES = ("the template `segments` goes with", "kv_heads must be 0 for an encoder")


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("tiny", {"family": "encoder"}, FAMILIES[0]),
        ("tiny", {"template": "segments"}, FAMILIES[0]),
        ("tiny", {"kv_heads": 0}, FAMILIES[1]),
        ("tiny", {"family": "encoder", "template": "segments"}, FAMILIES[1]),
        ("tiny", {"template": "llama-guard-3"}, "outputs are not those of"),
        ("tiny-encoder", {"family": "llama"}, FAMILIES[0]),
        ("tiny-encoder", {"template": "compact"}, FAMILIES[0]),
        ("tiny-encoder", {"kv_heads": 2}, FAMILIES[1]),
        ("tiny-encoder", {"kv_heads": -1}, "kv_heads"),
        ("tiny-encoder", {"family": "llama", "template": "compact"}, FAMILIES[1]),
        ("tiny-encoder", {"family": "bert"}, "family"),
    ],
)
def test_family_template_and_cache_must_go_together(
    tmp_path: Path, name: str, change: Data, why: str
) -> None:
    folder = Path(shutil.copytree(DATA / name, tmp_path / "model"))
    write(folder, read(folder) | change)

    with pytest.raises(ArtifactError, match="breaks the contract") as caught:
        open_artifact(folder)

    assert why in str(caught.value)


probabilities = st.floats(0, 1)


@given(
    unsafe=probabilities,
    strict=st.none() | probabilities,
    permissive=st.none() | probabilities,
)
def test_thresholds_rise_from_strict_to_permissive(
    unsafe: float, strict: float | None, permissive: float | None
) -> None:
    in_order = (strict is None or strict <= unsafe) and (permissive is None or unsafe <= permissive)
    if not in_order:
        with pytest.raises(ValueError, match="must rise from strict"):
            Thresholds(unsafe=unsafe, strict=strict, permissive=permissive)
        return
    thresholds = Thresholds(unsafe=unsafe, strict=strict, permissive=permissive)

    assert thresholds.at("balanced") == unsafe
    offered = {"strict": strict, "balanced": unsafe, "permissive": permissive}
    assert thresholds.by_preset == {k: v for k, v in offered.items() if v is not None}


def test_a_preset_that_a_model_lacks_says_what_to_use() -> None:
    thresholds = Thresholds(unsafe=0.5, strict=0.2)

    assert thresholds.at("strict") == 0.2
    with pytest.raises(ArtifactError, match=r"no preset 'permissive'. Use `balanced`, or set"):
        thresholds.at("permissive")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_manifest_must_list_what_runs(folder: Path, name: str) -> None:
    data = read(folder)
    files = data["files"]
    assert isinstance(files, dict)
    del files[name]
    write(folder, data)

    with pytest.raises(ArtifactError, match=f"lists no {name}"):
        open_artifact(folder)


def test_a_pinned_manifest_must_be_the_one(folder: Path) -> None:
    pinned = open_artifact(folder).sha256
    assert open_artifact(folder, expected_sha256=pinned).sha256 == pinned
    write(folder, read(folder) | {"version": "0.1.1"})

    with pytest.raises(ArtifactError, match="not the manifest this version ships"):
        open_artifact(folder, expected_sha256=pinned)


def test_a_written_manifest_reads_back_the_same(folder: Path) -> None:
    manifest = open_artifact(folder).manifest

    assert write_manifest(folder, manifest).manifest == manifest
    assert hash_files(folder, ("model.onnx",))["model.onnx"] == manifest.files["model.onnx"]


def test_a_model_is_found_by_path_then_by_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    assert find_artifact().folder == folder
    assert find_artifact(TINY).folder == TINY

    monkeypatch.setenv(MODEL_VARIABLE, str(folder / "absent"))
    with pytest.raises(ArtifactError, match="absent"):
        find_artifact()
