"""Where a guard runs: forked, spawned and preloaded processes, notebooks, threads with loops."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

import anyio
import pytest
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from guardrail_sdk import Guard
from guardrail_sdk.testing import FakeModel

DATA = Path(__file__).parent / "data"
PATIENCE_S = 120
TEXT = "How are you? " * 300

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run(script: str, **environment: str) -> str:
    """Return what a script prints in a process of its own, which must end in time and well."""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


# Several threads a run, as on any server: what a fork loses, and what ends badly if it is freed.
PRELOADED = f"""
import os, sys
from guardrail_sdk import Guard, _session
_session._threads = lambda: 4
guard = Guard(model={str(DATA / "tiny-encoder")!r})
text = {TEXT!r}

def probability():
    return round(guard.check_sync(text).verdict.unsafe_probability, 5)

loaded = probability()
for child in range(3):
    if not (pid := os.fork()):
        if child:
            assert probability() == loaded
        if child == 2:
            text += "again"
            import asyncio
            asyncio.run(guard.check(text))
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert probability() == loaded
"""


@forks
@pytest.mark.parametrize("parallelism", ["", "true"])
def test_workers_forked_off_a_loaded_guard_judge_and_end(parallelism: str) -> None:
    """As under `gunicorn --preload`; a worker ends as any process does, handlers at exit included.

    The first worker judges nothing.
    """
    assert run(PRELOADED, TOKENIZERS_PARALLELISM=parallelism) == "0\n0\n0\n"


def judged(guard: Guard) -> float:
    verdict = guard.check_sync(TEXT).verdict
    assert verdict is not None
    return verdict.unsafe_probability


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_loaded_guard_can_be_sent_to_a_process_of_any_kind(method: str) -> None:
    guard = Guard(model=DATA / "tiny-encoder")
    expected = judged(guard)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(judged, (guard,)).get(PATIENCE_S) == pytest.approx(expected)


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_off_a_running_event_loop_can_judge() -> None:
    guard = Guard(model=DATA / "tiny-encoder")

    async def parent() -> float:
        result = await guard.check(TEXT)
        assert result.verdict is not None
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply_async(judged, (guard,)).get(PATIENCE_S)
        assert found == pytest.approx(result.verdict.unsafe_probability)
        return found

    assert asyncio.run(parent()) > 0


def test_onnxruntime_reports_to_nobody() -> None:
    script = (
        "import os; from guardrail_sdk import Guard; "
        f"Guard(model={str(DATA / 'tiny-encoder')!r}).check_sync('Hello'); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    without = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=PATIENCE_S, env=without
    )
    assert ran.stdout == b"1\n"


CELLS = (
    "first = guard.check_sync('a bomb').blocked",
    "second = (await guard.check('a bomb')).blocked",
    "third = guard.wrap(lambda prompt: 'fine')('a cake')",
    "fourth = list(guard.wrap(stream)('a cake'))",
    "fifth = [chunk async for chunk in guard.wrap(stream_async)('a cake')]",
    "sixth = await guard.wrap(chat, parallel=True)('a cake')",
)
SETUP = """
def stream(prompt):
    yield 'fine'
async def stream_async(prompt):
    yield 'fine'
async def chat(prompt):
    return 'fine'
"""


class Shell(Protocol):
    """What is used of IPython's, which is only partly typed."""

    def transform_cell(self, raw_cell: str) -> str: ...

    async def run_cell_async(self, raw_cell: str, *, transformed_cell: str) -> ExecutionResult: ...


def test_cells_of_a_notebook_judge_while_its_event_loop_runs() -> None:
    """A kernel awaits its cells one by one on the main thread's loop, sync ones included."""
    names: dict[str, object] = {"guard": Guard(model=FakeModel(["bomb"]))}
    shell = cast("Shell", InteractiveShell(user_ns=names))

    async def kernel() -> None:
        for cell in (SETUP, *CELLS):
            code = shell.transform_cell(cell)
            (await shell.run_cell_async(cell, transformed_cell=code)).raise_error()

    asyncio.run(kernel())
    found = [names[name] for name in ("first", "second", "third", "fourth", "fifth", "sixth")]
    assert found == [True, True, "fine", ["fine"], ["fine"], "fine"]


def test_one_guard_serves_threads_with_and_without_loops_at_once() -> None:
    guard = Guard(model=DATA / "tiny-encoder")
    texts = [f"{TEXT} {number}" for number in range(6)]
    expected = [guard.check_sync(text).verdict for text in texts]

    async def check_all() -> list[object]:
        found: dict[str, float] = {}

        async def check(text: str) -> None:
            verdict = (await guard.check(text)).verdict
            assert verdict is not None
            found[text] = verdict.unsafe_probability

        async with anyio.create_task_group() as group:
            for text in texts:
                group.start_soon(check, text)
        return [found[text] for text in texts]

    def sync() -> list[object]:
        return [judged_text(guard, text) for text in texts]

    works: list[Callable[[], list[object]]] = [
        sync,
        lambda: anyio.run(check_all),
        lambda: anyio.run(check_all, backend="trio"),
        lambda: anyio.run(check_all, backend_options={"use_uvloop": sys.platform != "win32"}),
    ]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work) for work in [*works, *works]]
        for one in running:
            assert one.result(PATIENCE_S) == pytest.approx(
                [verdict.unsafe_probability for verdict in expected if verdict], abs=1e-5
            )


def judged_text(guard: Guard, text: str) -> float:
    verdict = guard.check_sync(text).verdict
    assert verdict is not None
    return verdict.unsafe_probability


EXPANDING = f"""
import pathlib, time
from guardrail_sdk import Guard

def half(path, contents):
    with path.open("wb") as file:
        file.write(contents[: len(contents) // 2]); file.flush()
        print("half", flush=True); time.sleep(60)

guard = Guard(model={str(DATA / "tiny-encoder")!r}, kernel="int8")
pathlib.Path.write_bytes = half
guard.check_sync("Hello")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_expansion_whose_writer_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", EXPANDING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    (half,) = (tmp_path / "guardrail-sdk").iterdir()
    assert half.stat().st_size > 1000

    judge = f"from guardrail_sdk import Guard\nprint(Guard(model={str(DATA / 'tiny-encoder')!r}, "
    judge += "kernel='int8').check_sync('Hello').verdict.unsafe_probability)"
    first, second = run(judge), run(judge)

    assert first == second
    names = sorted(path.name for path in (tmp_path / "guardrail-sdk").iterdir())
    assert [name.startswith("int8-") for name in names if name != half.name] == [True]
