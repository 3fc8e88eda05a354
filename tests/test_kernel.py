"""The choice of a kernel: asked for, remembered, or measured once on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardrail_sdk import ConfigError, Guard, _cache
from guardrail_sdk._engine import Engine
from guardrail_sdk._errors import ArtifactError
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._kernel import asked, choose, has_room
from guardrail_sdk.artifact import Artifact, open_artifact
from guardrail_sdk.testing import FakeModel

TINY = Path(__file__).parent / "data" / "tiny-encoder"


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GUARDRAIL_KERNEL")
    return open_artifact(TINY)


class Clock:
    """Kernels that take as long as a test says, and notes of which were timed."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.timed: list[Kernel] = []

    def __call__(self, kernel: Kernel) -> float:
        self.timed.append(kernel)
        if kernel not in self.seconds:
            raise ArtifactError("This graph can't be expanded.")
        return self.seconds[kernel]


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


def test_a_choice_is_measured_once(artifact: Artifact) -> None:
    first, second = Clock(int4=1.0, int8=0.5, float32=0.7), Clock()
    assert choose(artifact, first) == choose(artifact, second) == "int8"
    assert first.timed == ["int4", "int8", "float32"]
    assert not second.timed


def test_a_crash_while_measuring_is_not_repeated(artifact: Artifact) -> None:
    class Killed(BaseException):
        pass

    def killed(kernel: Kernel) -> float:
        raise Killed

    with pytest.raises(Killed):
        choose(artifact, killed)
    assert choose(artifact, Clock()) == "int4"


def test_a_spoilt_memory_is_measured_anew(artifact: Artifact, tmp_path: Path) -> None:
    clock = Clock(int4=1.0, int8=0.5, float32=0.7)
    choose(artifact, clock)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(b"int1")
    assert choose(artifact, clock) == "int8"
    _cache.write(kept.name, b"int1")
    assert choose(artifact, clock) == "int8"
    assert len(clock.timed) == 9


def test_what_cannot_be_remembered_is_not_measured(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "file"))
    clock = Clock()
    assert choose(artifact, clock) == "int4"
    assert not clock.timed


def test_without_room_the_file_runs_as_it_is(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardrail_sdk._kernel._free_bytes", lambda: [10**12, 10**6])
    assert not has_room(artifact, "int8")
    clock = Clock(int4=1.0, int8=0.5, float32=0.5)
    assert choose(artifact, clock) == "int4"
    assert clock.timed == ["int4"]


def test_an_engine_chooses_and_keeps_only_what_it_chose(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine._seconds
    times: dict[Kernel, float] = {"int4": 1.0, "int8": 0.5, "float32": 0.7}

    def seconds(engine: Engine, kernel: Kernel) -> float:
        assert real(engine, kernel) > 0
        return times[kernel]

    monkeypatch.setattr(Engine, "_seconds", seconds)
    engine = Engine(artifact)
    found = engine.classify([[1, 2, 3]], Budget())
    assert (found == Engine(artifact, "int8").classify([[1, 2, 3]], Budget())).all()
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir())
    assert kept == ["int8", "kernel"]


def test_a_harmed_expansion_is_made_anew(artifact: Artifact, tmp_path: Path) -> None:
    from guardrail_sdk._session import open_session

    open_session(artifact, "int8")
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    open_session(artifact, "int8")
    assert kept.read_bytes() == whole


def test_the_environment_is_asked_first(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked() is None
    monkeypatch.setenv("GUARDRAIL_KERNEL", "auto")
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
