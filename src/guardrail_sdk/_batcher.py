"""Runs the rows of concurrent checks together: in fair turns, within each check's own budget.

Onnxruntime computes a batch faster than its rows one by one, and two runs at once only share the
cores. So one thread runs everything: while a batch runs, the rows of other checks gather for the
next. A check that waits gives up when its budget is spent; a run that nobody waits for is ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Final

from guardrail_sdk._errors import EngineError
from guardrail_sdk._judge import Budget
from guardrail_sdk._session import RunOptions, run_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Read = Callable[[Sequence[Sequence[int]], RunOptions], NDArray[np.float32]]

MOST_WAITING: Final = 1024
"""Checks that may wait at once: beyond them, a new one fails at once instead of late."""
# More padded tokens than this don't make a run more efficient, and a run is the least that can
# be waited for; its memory is in proportion.
_RUN_TOKENS: Final = 1024
_POLL_S: Final = 0.02
_IDLE_S: Final = 0.5


class _Request:
    """The rows of one check, and what was read of them."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = rows
        self.pending = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        self.logits: dict[int, NDArray[np.float32]] = {}
        self.error: EngineError | None = None
        self.done = Event()

    def fail(self, error: EngineError) -> None:
        self.error = error
        self.pending.clear()
        self.done.set()


_Batch = list[tuple[_Request, int]]


class Batcher:
    """One model's runs, shared by all threads of a process.

    Args:
        read: Runs rows of token ids as one batch; returns float32 [rows, outputs]. It may raise
            anything; `terminate` of its options may be set from another thread.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._requests: deque[_Request] = deque()
        self._changed = Condition()
        self._running: _Batch = []
        self._options = run_options()
        self._thread: Thread | None = None

    def logits(self, rows: Sequence[Sequence[int]], budget: Budget) -> NDArray[np.float32]:
        """Return the logits of `rows`, at least one, float32 [rows, outputs].

        Raises:
            EngineTimeout: If the budget is spent before they are there.
            EngineError: If the graph fails on them, a logit is not finite, or too many checks wait.
        """
        import numpy as np

        budget.spend()
        request = _Request(rows)
        self._put(request)
        try:
            left = budget.remaining_s()
            while not request.done.wait(_POLL_S if left is None else min(_POLL_S, left)):
                budget.spend()
                left = budget.remaining_s()
        finally:
            self._abandon(request)
        if request.error is not None:
            raise request.error from None
        return np.stack([request.logits[index] for index in range(len(rows))])

    def _put(self, request: _Request) -> None:
        with self._changed:
            if len(self._requests) >= MOST_WAITING:
                raise EngineError(
                    f"{MOST_WAITING} checks wait already: no verdict. Send fewer at once."
                )
            if self._thread is None:
                thread = Thread(target=self._work, name="guardrail-runner", daemon=True)
                thread.start()
                self._thread = thread
            self._requests.append(request)
            self._changed.notify()

    def _abandon(self, request: _Request) -> None:
        """Take back what isn't read yet, and end a run of which nobody waits for a row."""
        if request.done.is_set():
            return
        with self._changed:
            request.pending.clear()
            request.done.set()
            if self._running and all(other.done.is_set() for other, _ in self._running):
                self._options.terminate = True

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._run(batch)
            except Exception as error:
                # Nobody may wait for a thread that is gone.
                for request, _ in batch:
                    request.fail(EngineError(f"A run failed ({type(error).__name__})."))

    def _next(self) -> _Batch | None:
        """Wait for rows and return the next batch; None if none came for a while."""
        with self._changed:
            self._running = []
            while not (batch := self._compose()):
                if not self._changed.wait(_IDLE_S) and not self._requests:
                    self._thread = None
                    return None
            self._running, self._options = batch, run_options()
            return batch

    def _compose(self) -> _Batch:
        """Return rows of similar length: one of each waiting check, then more while there is room.

        The check that waited longest decides the length; what has had its turn goes last.
        """
        batch: _Batch = []
        shortest = longest = 0
        turns = deque(request for request in self._requests if request.pending)
        self._requests = deque(turns)
        while turns:
            request = turns.popleft()
            for place, index in enumerate(request.pending):
                length = len(request.rows[index])
                low, high = min(shortest or length, length), max(longest, length)
                if 4 * low >= 3 * high and (not batch or (len(batch) + 1) * high <= _RUN_TOKENS):
                    del request.pending[place]
                    batch.append((request, index))
                    shortest, longest = low, high
                    turns.append(request)
                    break
        served = {id(request) for request, _ in batch}
        waiting = [request for request in self._requests if request.pending]
        self._requests = deque(sorted(waiting, key=lambda request: id(request) in served))
        return batch

    def _run(self, batch: _Batch) -> None:
        """Read a batch; where it fails, read each check's rows alone: another's may be at fault."""
        import numpy as np

        try:
            found = self._read([request.rows[index] for request, index in batch], self._options)
        except Exception as error:
            owners = {id(request): request for request, _ in batch}
            if len(owners) > 1:
                for owner in owners.values():
                    self._run([one for one in batch if one[0] is owner])
            else:
                # The library's message may hold token ids, which spell the text.
                name = type(error).__name__
                batch[0][0].fail(EngineError(f"onnxruntime failed ({name})."))
            return
        for (request, index), logits in zip(batch, found, strict=True):
            if not np.isfinite(logits).all():
                request.fail(
                    EngineError("The model gave a logit that is not a number: no verdict.")
                )
            request.logits[index] = logits
            if len(request.logits) == len(request.rows):
                request.done.set()
