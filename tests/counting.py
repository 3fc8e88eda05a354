"""A session that counts what it reads, and fails if told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from guardrail_sdk._expand import Kernel
from guardrail_sdk._session import RunOptions, Session
from guardrail_sdk.artifact import Artifact


class Counting:
    """A session that notes the shape of its runs.

    Attributes:
        runs: Rows and tokens a row of each run, in order.
        spoilt: Whether logits are no numbers.
        ended: Whether runs are terminated, as those that nobody waits for.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.runs: list[tuple[int, int]] = []
        self.spoilt = False
        self.ended = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    @property
    def read(self) -> int:
        """The rows that were read."""
        return sum(rows for rows, _ in self.runs)

    @property
    def tokens(self) -> int:
        """The tokens that were read, padding among them."""
        return sum(rows * width for rows, width in self.runs)

    def run(
        self,
        output_names: Sequence[str],
        input_feed: Mapping[str, NDArray[np.generic]],
        run_options: RunOptions,
    ) -> Sequence[NDArray[np.float32]]:
        rows, width = input_feed["input_ids"].shape
        self.runs.append((rows, width))
        run_options.terminate = self.ended
        found = self._session.run(output_names, input_feed, run_options)
        return [np.full_like(part, np.nan) for part in found] if self.spoilt else found


def counted(monkeypatch: pytest.MonkeyPatch, session: Session) -> Counting:
    """Have engines that load from now on run `session`, and return what counts its runs."""
    counting = Counting(session)

    def open_counting(artifact: Artifact, kernel: Kernel) -> Counting:
        return counting

    monkeypatch.setattr("guardrail_sdk._engine.open_session", open_counting)
    return counting
