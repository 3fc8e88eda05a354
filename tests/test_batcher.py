"""The batcher: every row is read once, in fair turns, and nobody waits for what never comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from guardrail_sdk._batcher import MOST_WAITING, Batcher
from guardrail_sdk._errors import EngineError, EngineTimeout
from guardrail_sdk._judge import Budget
from guardrail_sdk._session import RunOptions

PATIENCE_S = 30


class Graph:
    """Reads rows by hand: a run goes on until a test lets it end, or until it is terminated."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[list[int]]] = []
        self.terminated = 0
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._held = held

    def __call__(self, rows: Sequence[Sequence[int]], options: RunOptions) -> NDArray[np.float32]:
        self.batches.append([list(row) for row in rows])
        self.begun.release()
        while self._held and not self.go.acquire(timeout=0.01):
            if options.terminate:
                self.terminated += 1
                raise RuntimeError("terminated: 77 77 77")
        if any(row[0] == 13 for row in rows):
            raise ValueError("the text was 13")
        logits = np.array([[sum(row), len(row)] for row in rows], np.float32)
        logits[[row[0] == 14 for row in rows]] = np.nan
        return logits


def expected(rows: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[float(sum(row)), float(len(row))] for row in rows]


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(64)


def ask(
    pool: ThreadPoolExecutor, batcher: Batcher, rows: list[list[int]], budget: Budget | None = None
) -> Future[NDArray[np.float32]]:
    return pool.submit(batcher.logits, rows, budget or Budget())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


checks = st.lists(
    st.lists(st.integers(1, 2000).map(lambda length: [1] * length), min_size=1, max_size=20),
    min_size=1,
    max_size=8,
)


@given(checks=checks)
def test_every_row_is_read_once_with_little_padding(checks: list[list[list[int]]]) -> None:
    graph = Graph(held=True)
    batcher = Batcher(graph)
    with ThreadPoolExecutor(len(checks) + 1) as pool:
        first = ask(pool, batcher, [[1]])
        assert graph.begun.acquire(timeout=PATIENCE_S)
        asked = [ask(pool, batcher, rows) for rows in checks]
        wait_until(lambda: len(batcher._requests) == len(checks))
        graph.go.release(1000)
        found = [one.result(PATIENCE_S).tolist() for one in asked]
        first.result(PATIENCE_S)

    assert found == [expected(rows) for rows in checks]
    assert sum(map(len, graph.batches)) == 1 + sum(map(len, checks))
    for batch in graph.batches:
        lengths = [len(row) for row in batch]
        assert len(batch) == 1 or len(batch) * max(lengths) <= 1024
        assert 4 * min(lengths) >= 3 * max(lengths)


def test_rows_of_waiting_checks_run_together(pool: ThreadPoolExecutor) -> None:
    graph = Graph(held=True)
    batcher = Batcher(graph)
    asked = [ask(pool, batcher, [[1, 2, 3]])]
    assert graph.begun.acquire(timeout=PATIENCE_S)
    asked += [ask(pool, batcher, [[number] * 10]) for number in range(1, 9)]
    wait_until(lambda: len(batcher._requests) == 8)
    graph.go.release(2)

    for one in asked:
        one.result(PATIENCE_S)
    assert [len(batch) for batch in graph.batches] == [1, 8]


def test_a_short_check_does_not_wait_for_a_long_one(pool: ThreadPoolExecutor) -> None:
    graph = Graph(held=True)
    batcher = Batcher(graph)
    long = ask(pool, batcher, [[1] * 500 for _ in range(40)])
    assert graph.begun.acquire(timeout=PATIENCE_S)
    short = ask(pool, batcher, [[2] * 10])
    wait_until(lambda: len(batcher._requests) == 2)
    graph.go.release(3)

    assert short.result(PATIENCE_S).tolist() == expected([[2] * 10])
    assert not long.done()
    graph.go.release(100)
    assert len(long.result(PATIENCE_S)) == 40


def test_a_run_that_nobody_waits_for_is_ended(pool: ThreadPoolExecutor) -> None:
    graph = Graph(held=True)
    batcher = Batcher(graph)
    budgets = [Budget(), Budget()]
    first = ask(pool, batcher, [[1]])
    assert graph.begun.acquire(timeout=PATIENCE_S)
    asked = [ask(pool, batcher, [[5, 6]], budget) for budget in budgets]
    wait_until(lambda: len(batcher._requests) == 2)
    graph.go.release()
    first.result(PATIENCE_S)
    assert graph.begun.acquire(timeout=PATIENCE_S)

    budgets[0].cancelled.set()
    with pytest.raises(EngineTimeout, match="cancelled"):
        asked[0].result(PATIENCE_S)
    assert not graph.terminated, "the other check still waits for this run"
    budgets[1].cancelled.set()
    with pytest.raises(EngineTimeout, match="cancelled"):
        asked[1].result(PATIENCE_S)
    wait_until(lambda: graph.terminated > 0)
    graph.go.release(10)
    assert batcher.logits([[1, 2]], Budget()).tolist() == expected([[1, 2]])


def test_a_deadline_is_kept_whatever_runs(pool: ThreadPoolExecutor) -> None:
    graph = Graph(held=True)
    batcher = Batcher(graph)
    other = ask(pool, batcher, [[1]])
    assert graph.begun.acquire(timeout=PATIENCE_S)
    began = time.monotonic()
    with pytest.raises(EngineTimeout):
        batcher.logits([[2]], Budget(deadline=began + 0.05))
    assert time.monotonic() - began < PATIENCE_S / 2
    graph.go.release(10)
    other.result(PATIENCE_S)
    assert graph.batches == [[[1]]], "what was given up isn't read"


@pytest.mark.parametrize(("bad", "message"), [(13, "ValueError"), (14, "not a number")])
def test_one_checks_failure_is_not_anothers(
    pool: ThreadPoolExecutor, bad: int, message: str
) -> None:
    graph = Graph(held=True)
    batcher = Batcher(graph)
    first = ask(pool, batcher, [[1]])
    assert graph.begun.acquire(timeout=PATIENCE_S)
    good, spoilt = ask(pool, batcher, [[1, 2]]), ask(pool, batcher, [[bad, 2]])
    wait_until(lambda: len(batcher._requests) == 2)
    graph.go.release(10)

    assert good.result(PATIENCE_S).tolist() == expected([[1, 2]])
    first.result(PATIENCE_S)
    with pytest.raises(EngineError, match=message) as caught:
        spoilt.result(PATIENCE_S)
    assert "text" not in str(caught.value)
    assert batcher.logits([[3]], Budget()).tolist() == expected([[3]])


def test_a_graph_that_gives_nonsense_is_an_error_and_the_runner_lives_on() -> None:
    answers = [np.zeros((7, 2), np.float32), np.zeros((1, 2), np.float32)]
    batcher = Batcher(lambda rows, options: answers.pop(0))
    with pytest.raises(EngineError, match="ValueError"):
        batcher.logits([[1]], Budget())
    assert batcher.logits([[1]], Budget()).shape == (1, 2)


def test_too_many_waiting_checks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrail_sdk._batcher.MOST_WAITING", 3)
    assert MOST_WAITING > 100
    graph = Graph(held=True)
    batcher = Batcher(graph)
    with ThreadPoolExecutor(8) as pool:
        asked = [ask(pool, batcher, [[1]])]
        assert graph.begun.acquire(timeout=PATIENCE_S)
        asked += [ask(pool, batcher, [[2]]) for _ in range(3)]
        wait_until(lambda: len(batcher._requests) == 3)
        with pytest.raises(EngineError, match="wait already"):
            batcher.logits([[3]], Budget())
        graph.go.release(10)
        for one in asked:
            one.result(PATIENCE_S)


def test_the_runner_ends_when_idle_and_comes_back() -> None:
    batcher = Batcher(Graph())
    for _ in range(2):
        batcher.logits([[1]], Budget())
        thread = batcher._thread
        assert thread is not None
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
