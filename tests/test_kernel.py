"""The choice of a kernel: asked for, remembered, or measured once on this machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from guardrail_sdk import ConfigError, Guard, _cache
from guardrail_sdk._engine import Engine
from guardrail_sdk._errors import ArtifactError
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._kernel import Trial, _free_bytes, asked, choose, has_room
from guardrail_sdk._session import open_session
from guardrail_sdk.artifact import Artifact, open_artifact
from guardrail_sdk.testing import FakeModel

DATA = Path(__file__).parent / "data"
LOGITS = np.array([[1.0, -1.0], [3.0, 2.0]], np.float32)


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Return a model that no other test has loaded, with a cache of its own."""
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GUARDRAIL_KERNEL")
    shutil.copytree(DATA / "tiny-encoder", tmp_path / "model")
    return open_artifact(tmp_path / "model")


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "guardrail-sdk").iterdir())


class Clock:
    """Kernels that take as long as a test says, and notes of which were tried."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.logits: dict[str, NDArray[np.float32]] = {}
        self.tried: list[Kernel] = []

    def __call__(self, kernel: Kernel) -> Trial:
        self.tried.append(kernel)
        if kernel not in self.seconds:
            raise MemoryError
        return Trial(self.seconds[kernel], self.logits.get(kernel, LOGITS))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({"int4": 1.0, "int8": 0.5, "float32": 0.7}, "int8"),
        ({"int4": 1.0, "int8": 0.8, "float32": 0.5}, "float32"),
        ({"int4": 1.0, "int8": 0.95, "float32": 0.95}, "int4"),
        ({"int4": 1.0, "int8": 0.8, "float32": 0.78}, "int8"),
        ({"int4": 1.0}, "int4"),
    ],
)
def test_the_fastest_is_chosen_if_it_is_worth_its_memory(
    artifact: Artifact, seconds: dict[str, float], best: Kernel
) -> None:
    assert choose(artifact, Clock(**seconds)) == best


@pytest.mark.parametrize("wrong", [LOGITS + 0.2, LOGITS * np.nan, LOGITS[:1]])
def test_a_kernel_whose_logits_are_others_is_not_chosen(
    artifact: Artifact, wrong: NDArray[np.float32]
) -> None:
    clock = Clock(int4=1.0, int8=0.5, float32=0.7)
    clock.logits["int8"] = wrong
    assert choose(artifact, clock) == "float32"


def test_a_choice_is_measured_once(artifact: Artifact) -> None:
    first, second = Clock(int4=1.0, int8=0.5, float32=0.7), Clock()
    assert choose(artifact, first) == choose(artifact, second) == "int8"
    assert first.tried == ["int4", "int8", "float32"]
    assert not second.tried


def test_what_ended_while_measuring_is_measured_again_but_not_soon(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(kernel: Kernel) -> Trial:
        raise Killed

    with pytest.raises(Killed):
        choose(artifact, killed)
    soon = Clock()
    assert choose(artifact, soon) == "int4"
    assert not soon.tried
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert choose(artifact, Clock(int4=1.0, int8=0.5, float32=0.7)) == "int8"


def test_a_process_does_not_measure_while_another_does(artifact: Artifact) -> None:
    other = Clock(int4=1.0, int8=0.5, float32=0.7)

    def meanwhile(kernel: Kernel) -> Trial:
        assert choose(artifact, other) == "int4"
        return Clock(int4=1.0, int8=0.5, float32=0.7)(kernel)

    assert choose(artifact, meanwhile) == "int8"
    assert not other.tried
    assert choose(artifact, other) == "int8", "what the other found is not overwritten"


def test_a_spoilt_memory_is_measured_anew(artifact: Artifact, tmp_path: Path) -> None:
    clock = Clock(int4=1.0, int8=0.5, float32=0.7)
    choose(artifact, clock)
    (name,) = kept(tmp_path)
    (tmp_path / "cache" / "guardrail-sdk" / name).write_bytes(b"int1")
    assert choose(artifact, clock) == "int8"
    _cache.write(name.removesuffix(".guardrail"), b"int1")
    assert choose(artifact, clock) == "int8"
    assert len(clock.tried) == 9


def test_what_cannot_be_remembered_is_not_measured(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "file"))
    clock = Clock()
    assert choose(artifact, clock) == "int4"
    assert not clock.tried


def test_without_room_the_file_runs_as_it_is_until_there_is(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10**12, 10**6]
    monkeypatch.setattr("guardrail_sdk._kernel._free_bytes", lambda: free)
    assert not has_room(artifact, "int8")
    clock = Clock(int4=1.0, int8=0.5, float32=0.5)
    assert choose(artifact, clock) == "int4"
    assert clock.tried == ["int4"]
    free[1] = 10**12
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert choose(artifact, clock) == "int8"


def test_free_memory_is_what_machine_and_group_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardrail_sdk._kernel._GROUP", tmp_path)
    machine = _free_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert len(_free_bytes()) == len(machine), "no limit"
    (tmp_path / "memory.max").write_text("1000\n")
    assert _free_bytes()[-1] == 900


def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have INT8 be the fastest, whatever this machine says."""
    real = Engine._try_out
    times: dict[Kernel, float] = {"int4": 1.0, "int8": 0.5, "float32": 0.7}

    def try_out(engine: Engine, kernel: Kernel) -> Trial:
        return real(engine, kernel)._replace(seconds=times[kernel])

    monkeypatch.setattr(Engine, "_try_out", try_out)


def test_an_engine_chooses_and_keeps_only_what_it_chose(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch)
    found = Engine(artifact).classify([[1, 2, 3]], Budget())
    assert (found == Engine(artifact, "int8").classify([[1, 2, 3]], Budget())).all()
    assert (found != Engine(artifact, "int4").classify([[1, 2, 3]], Budget())).any()
    assert [name.split("-")[0] for name in kept(tmp_path)] == ["int8", "kernel"]


@pytest.mark.parametrize("failure", [ArtifactError("no"), MemoryError()])
def test_a_choice_that_cannot_be_loaded_runs_as_it_is_stored(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    fixed(monkeypatch)
    choose(artifact, Engine(artifact)._try_out)

    def fail(graph: bytes, folder: Path, kernel: Kernel) -> bytes:
        raise failure

    monkeypatch.setattr("guardrail_sdk._session.expand", fail)
    found = Engine(artifact).classify([[1, 2, 3]], Budget())
    assert (found == Engine(artifact, "int4").classify([[1, 2, 3]], Budget())).all()
    with pytest.raises(ArtifactError):
        Engine(artifact, "int8").classify([[1, 2, 3]], Budget())


@pytest.mark.parametrize("harm", ["cut", "another graph"])
def test_a_harmed_expansion_is_made_anew(artifact: Artifact, tmp_path: Path, harm: str) -> None:
    open_session(artifact, "int8")
    (name,) = kept(tmp_path)
    path = tmp_path / "cache" / "guardrail-sdk" / name
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        _cache.write(name.removesuffix(".guardrail"), b"not a graph")
    open_session(artifact, "int8")
    assert path.read_bytes() == whole


def test_nothing_is_kept_of_a_file_that_was_changed(artifact: Artifact, tmp_path: Path) -> None:
    weights = artifact.folder / "model.onnx.data"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(ArtifactError):
        open_session(artifact, "int8")
    assert not (tmp_path / "cache").exists() or not kept(tmp_path)
    weights.write_bytes(whole)
    open_session(artifact, "int8")


def test_the_environment_is_asked_first(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked() is None
    for name in ("auto", ""):
        monkeypatch.setenv("GUARDRAIL_KERNEL", name)
        assert asked() is None
    monkeypatch.setenv("GUARDRAIL_KERNEL", "float32")
    assert asked() == "float32"
    monkeypatch.setenv("GUARDRAIL_KERNEL", "int2")
    with pytest.raises(ConfigError, match=r"GUARDRAIL_KERNEL is 'int2': use auto, int4, int8"):
        Guard()


def test_a_wrong_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel is 'int2'"):
        Guard(kernel="int2")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is a Judge"):
        Guard(model=FakeModel(), kernel="int8")
