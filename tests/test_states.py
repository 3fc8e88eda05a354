"""The kept states: of what rows begin with, never of anything else, and never more than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from guardrail_sdk._states import BLOCK, States

PARTS, HEADS, WIDTH = 4, 2, 3
BLOCK_BYTES = BLOCK * PARTS * HEADS * WIDTH * 4


def present(row: Sequence[int]) -> list[NDArray[np.float32]]:
    """Return keys and values that at each token depend on all tokens up to it."""
    sums = np.cumsum(row, dtype=np.float32)[None, None, :, None]
    scale = np.arange(1, HEADS * WIDTH + 1, dtype=np.float32).reshape(1, HEADS, 1, WIDTH)
    return [sums * scale * part for part in range(1, PARTS + 1)]


def kept(states: States, row: Sequence[int]) -> int:
    """Return how many tokens of `row` are kept, having made sure that they are the row's."""
    past = states.past(row)
    if not past:
        return 0
    count = past[0].shape[2]
    for found, expected in zip(past, present(row), strict=True):
        np.testing.assert_array_equal(found, expected[:, :, :count])
    return count


def common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def blocks(tokens: int) -> int:
    return BLOCK * (tokens // BLOCK)


@st.composite
def families(draw: st.DrawFn) -> list[list[int]]:
    """Rows of which many begin alike."""
    rows: list[list[int]] = []
    for _ in range(draw(st.integers(1, 6))):
        base = draw(st.sampled_from([[], *rows]))
        cut = draw(st.integers(0, len(base)))
        more = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3 * BLOCK))
        rows.append([*base[:cut], *more])
    return rows


@given(rows=families())
def test_what_is_kept_of_a_row_is_what_it_shares_with_an_earlier_one(
    rows: list[list[int]],
) -> None:
    states = States()
    for index, row in enumerate(rows):
        # A row's last token belongs to no block: something is always left to read.
        shared = [min(common(row, other), len(row) - 1, len(other) - 1) for other in rows[:index]]
        expected = blocks(max(shared, default=0))
        assert kept(states, row) == expected
        assert states.shared(row) == expected
        states.keep(row, present(row))


@given(rows=families(), most_blocks=st.integers(0, 8))
def test_no_more_is_kept_than_allowed(rows: list[list[int]], most_blocks: int) -> None:
    states = States(most_blocks * BLOCK_BYTES + 1)
    for row in rows:
        states.keep(row, present(row))
        held = [block.base if block.base is not None else block for block in states._kept.values()]
        assert sum(block.nbytes for block in held) <= most_blocks * BLOCK_BYTES
        # What was read last is kept first of all, from its beginning on.
        assert kept(states, row) == min(blocks(len(row) - 1), most_blocks * BLOCK)


def test_what_was_not_used_for_longest_is_dropped_first_from_its_end() -> None:
    first, second, third = ([number] * (3 * BLOCK + 1) for number in (1, 2, 3))
    states = States(7 * BLOCK_BYTES)
    for row in (first, second, first, third):
        states.keep(row, present(row))

    assert [kept(states, row) for row in (first, second, third)] == [3 * BLOCK, BLOCK, 3 * BLOCK]


def test_of_a_row_that_was_only_seen_nothing_is_kept() -> None:
    row = [1] * (4 * BLOCK)
    states = States()
    states.see(row)

    assert states.shared([*row, 2]) == 3 * BLOCK
    assert kept(states, [*row, 2]) == 0


def test_how_rows_began_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardrail_sdk._states._MOST_SEEN", 6)
    states = States()
    rows = [[number] * (3 * BLOCK) for number in range(4)]
    for row in rows:
        states.see(row)

    assert [states.shared(row) for row in rows] == [0, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK]


def test_threads_find_what_belongs_to_their_rows() -> None:
    states = States(12 * BLOCK_BYTES)

    def grow(start: int) -> int:
        row = [7] * (2 * BLOCK)
        reused = 0
        for step in range(60):
            row = [*row, *[start] * 9] if step % 10 else [7] * (2 * BLOCK)
            reused += kept(states, row)
            states.keep(row, present(row))
        return reused

    with ThreadPoolExecutor(8) as pool:
        reused = list(pool.map(grow, range(8), timeout=60))

    assert all(reused)
    assert len(states._kept) <= 12
