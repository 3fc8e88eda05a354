"""Runs a model's ONNX graph: from token ids to output logits, on the CPU."""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final, TypeAlias

from guardrail_sdk._batcher import Batcher
from guardrail_sdk._errors import ArtifactError, EngineError
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._kernel import Trial, asked, choose, has_room
from guardrail_sdk._process import PerProcess
from guardrail_sdk._session import RunOptions, Session, open_session, run_options
from guardrail_sdk._states import States
from guardrail_sdk.artifact import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Higher than any vocabulary's ids.
_NO_TOKEN: Final = 2**31 - 1
_POLL_S: Final = 0.02
# A run of fewer tokens takes hardly less time: it must read all weights all the same.
_FULL_RUN: Final = 64
_WORTH_TOKENS: Final = 32
_TIMED_TOKENS: Final = 64
_TIMED_ROWS: Final = 6

# Logits of this many rows are kept: some 2 MB.
_REMEMBERED: Final = 8192


_Feed: TypeAlias = "Mapping[str, NDArray[np.generic]]"
_RunGraph: TypeAlias = "Callable[[Sequence[str], _Feed], Sequence[NDArray[np.float32]]]"


class _Recent:
    """The logits of the rows that were read last, by a hash of their ids.

    Verdicts follow from logits, whatever the policy; neither text nor ids are kept.
    """

    def __init__(self) -> None:
        self._logits: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def get(self, row: bytes) -> NDArray[np.float32] | None:
        with self._lock:
            if row in self._logits:
                self._logits.move_to_end(row)
            return self._logits.get(row)

    def put(self, row: bytes, logits: NDArray[np.float32]) -> None:
        with self._lock:
            self._logits[row] = logits
            self._logits.move_to_end(row)
            while len(self._logits) > _REMEMBERED:
                self._logits.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Loaded:
    session: Session
    batcher: Batcher
    recent: _Recent
    states: States


_chosen: PerProcess[tuple[Path, str], Kernel] = PerProcess()
_loaded: PerProcess[tuple[Path, str, Kernel], _Loaded] = PerProcess()


class Engine:
    """A model's graph; engines of the same model share one session per process.

    Args:
        artifact: The model. Nothing of it is loaded before `load` or the first run.
        kernel: What its projections run with; None for what the environment asks for, or what is
            fastest on this machine.
    """

    def __init__(self, artifact: Artifact, kernel: Kernel | None = None) -> None:
        self._artifact = artifact
        self._asked: Kernel | None = kernel
        manifest = artifact.manifest
        cached = manifest.layers if manifest.family == "llama" else 0
        self._past = [f"{layer}.{part}" for layer in range(cached) for part in ("key", "value")]
        self._decoded = ["logits", *(f"present.{name}" for name in self._past)]

    def load(self) -> None:
        """Load the graph, unless this process already has.

        Raises:
            ArtifactError: If it can't be loaded or isn't what the manifest says.
        """
        self._load()

    def classify(self, rows: Sequence[Sequence[int]], budget: Budget) -> NDArray[np.float32]:
        """Return the logits of each row, a decoder's at its last position: float32 [rows, outputs].

        Args:
            rows: Token ids, at least one a row; of any lengths up to the model's context. They
                run in batches of similar length, which changes no row's logits; those that were
                read lately aren't read again.
            budget: Ends the work when it is spent, also within a run.

        Raises:
            EngineTimeout: If the budget is spent.
            EngineError: If the graph fails, or a logit is not finite.
        """
        import numpy as np

        loaded = self._load()
        recent = loaded.recent
        keys = [_key(row) for row in rows]
        logits = np.empty((len(rows), len(self._artifact.manifest.outputs)), dtype=np.float32)
        new: list[int] = []
        for index, key in enumerate(keys):
            known = recent.get(key)
            if known is None:
                new.append(index)
            else:
                logits[index] = known
        if not new:
            budget.spend()
            return logits
        read = loaded.batcher.logits([rows[index] for index in new], budget)
        for index, found in zip(new, read, strict=True):
            logits[index] = found
            recent.put(keys[index], found)
        return logits

    def _read(
        self, session: Session, states: States, rows: Sequence[Sequence[int]], options: RunOptions
    ) -> NDArray[np.float32]:
        """Return the logits of `rows`: of those that begin like earlier ones each by itself.

        Onnxruntime reads several tokens after others only in a batch of one. The others are read
        at once, and nothing of them is kept.
        """
        import numpy as np

        def run(outputs: Sequence[str], feed: _Feed) -> Sequence[NDArray[np.float32]]:
            return session.run(outputs, feed, options)

        if not self._past:
            return run(["logits"], self._feed(rows))[0]
        logits = np.empty((len(rows), len(self._artifact.manifest.outputs)), dtype=np.float32)
        grown = [index for index, row in enumerate(rows) if _is_worth(states.shared(row), len(row))]
        new = [index for index in range(len(rows)) if index not in grown]
        if new:
            together = [rows[index] for index in new]
            found = run(["logits"], self._feed(together))[0]
            logits[new] = found[range(len(new)), [len(row) - 1 for row in together]]
            for row in together:
                states.see(row)
        for index in grown:
            logits[index], _ = self._extend(run, states, rows[index])
        return logits

    def _extend(
        self, run: _RunGraph, states: States, row: Sequence[int]
    ) -> tuple[NDArray[np.float32], Sequence[NDArray[np.float32]]]:
        """Read of `row` what isn't kept, and keep it; return its logits, keys and values."""
        import numpy as np

        past = states.past(row)
        kept = past[0].shape[2] if past else 0
        found, *present = run(self._decoded, self._feed([row[kept:]], past, len(row)))
        logits = found[0, -1]
        if np.isfinite(logits).all():
            states.keep(row, present)
        return logits, present

    def knows(self, token: int) -> bool:
        """Return whether the graph has an embedding for the token id `token`.

        onnxruntime reads an id beyond a 4-bit embedding's last row as zeros, without an error.
        """
        logits: list[bytes] = []
        for wanted in (token, _NO_TOKEN):
            try:
                logits.append(self.classify([[wanted]], Budget()).tobytes())
            except EngineError:
                return wanted != token
        return logits[0] != logits[1]

    def answer(
        self,
        ids: Sequence[int],
        output_ids: Sequence[int],
        stop: int,
        at_most: int,
        budget: Budget,
    ) -> NDArray[np.float32]:
        """Return the logits of what the model says after `ids`, likeliest output by output.

        Args:
            ids: The prompt's token ids.
            output_ids: The token id of each output, in order: what is fed back.
            stop: The output that ends the answer.
            at_most: The most outputs to say, at least 1.
            budget: As for `classify`.

        Returns:
            float32 [said, outputs]; the last row's likeliest output is `stop`, unless `at_most`
            came first.

        Raises:
            EngineTimeout: If the budget is spent.
            EngineError: If the graph fails, or a logit is not finite.
        """
        import numpy as np

        # Single tokens are what INT4 is fastest for.
        with self._running(budget, "int4") as run:
            logits, present = self._extend(run, self._load("int4").states, ids)
            said = [_finite(logits)]
            while len(said) < at_most and (best := int(said[-1].argmax())) != stop:
                feed = self._feed([[output_ids[best]]], present, len(ids) + len(said))
                found, *present = run(self._decoded, feed)
                said.append(_finite(found[0, -1]))
        return np.stack(said)

    def _feed(
        self,
        rows: Sequence[Sequence[int]],
        past: Sequence[NDArray[np.float32]] = (),
        total: int = 0,
    ) -> dict[str, NDArray[np.generic]]:
        """Return the graph's inputs for `rows`, padded on the right.

        The graph derives positions and the attended length from the mask's sum, so padding on
        the left would give wrong logits without an error.
        """
        import numpy as np

        width = max(map(len, rows))
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros((len(rows), max(width, total)), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : max(len(row), total)] = 1
        manifest = self._artifact.manifest
        empty = np.empty((len(rows), manifest.kv_heads, 0, manifest.head_dim), dtype=np.float32)
        feed: dict[str, NDArray[np.generic]] = {"input_ids": ids, "attention_mask": mask}
        for index, name in enumerate(self._past):
            feed[f"past_key_values.{name}"] = past[index] if past else empty
        return feed

    @contextmanager
    def _running(self, budget: Budget, kernel: Kernel) -> Generator[_Run]:
        """Provide a function that runs the graph, and end its runs when `budget` is spent."""
        budget.spend()
        options = run_options()
        done = Event()
        watcher = Thread(
            target=_watch, args=(budget, options, done), name="guardrail-deadline", daemon=True
        )
        run = _Run(self._load(kernel).session, options, budget)
        watcher.start()
        try:
            yield run
        finally:
            done.set()

    def _load(self, kernel: Kernel | None = None) -> _Loaded:
        artifact = self._artifact
        place = (artifact.graph, artifact.sha256)
        own: Kernel = kernel or self._asked or asked() or _chosen.get(place, self._fastest)
        return self._opened(own)

    def _opened(self, kernel: Kernel) -> _Loaded:
        """Return what this process shares of the model with `kernel`."""

        def load() -> _Loaded:
            session, states = open_session(self._artifact, kernel), States()
            batcher = Batcher(partial(self._read, session, states))
            return _Loaded(session, batcher, _Recent(), states)

        place = (self._artifact.graph, self._artifact.sha256, kernel)
        return _loaded.get(place, load)

    def _fastest(self) -> Kernel:
        """Return the kernel that is fastest here; the least one if there is no room for it."""
        kernel = choose(self._artifact, self._try_out)
        if kernel != "int4" and has_room(self._artifact, kernel):
            with suppress(ArtifactError):
                self._opened(kernel)
                return kernel
        return "int4"

    def _try_out(self, kernel: Kernel) -> Trial:
        """Return how long a prompt of usual length takes with `kernel`, and a few rows' logits."""
        import numpy as np

        session = open_session(self._artifact, kernel, keep=False)
        length = min(_TIMED_TOKENS, self._artifact.manifest.context_length)
        first = np.arange(_TIMED_ROWS)[:, None]
        rows: list[list[int]] = (1 + (7 * first + np.arange(length) * (first + 1)) % 97).tolist()
        times: list[float] = []
        found: list[NDArray[np.float32]] = []
        try:
            for row in rows:
                began = time.perf_counter()
                found.append(self._read(session, States(), [row], run_options()))
                times.append(time.perf_counter() - began)
        except Exception as error:
            raise EngineError(f"onnxruntime failed ({type(error).__name__}, {kernel}).") from None
        # The first run makes what the others use; the shortest was disturbed least.
        return Trial(min(times[1:]), np.concatenate(found))


class _Run:
    """Runs a session's graph within a budget."""

    def __init__(self, session: Session, options: RunOptions, budget: Budget) -> None:
        self._session = session
        self._options = options
        self._budget = budget

    def __call__(
        self, outputs: Sequence[str], feed: Mapping[str, NDArray[np.generic]]
    ) -> Sequence[NDArray[np.float32]]:
        self._budget.spend()
        try:
            return self._session.run(outputs, feed, self._options)
        except Exception as error:
            self._budget.spend()
            # The library's message may hold token ids, which spell the text.
            raise EngineError(f"onnxruntime failed ({type(error).__name__}).") from None


def _watch(budget: Budget, options: RunOptions, done: Event) -> None:
    """Make onnxruntime stop between two of the graph's nodes once `budget` is spent."""
    left = budget.remaining_s()
    while not done.wait(_POLL_S if left is None else min(_POLL_S, left)):
        left = budget.remaining_s()
        if left == 0.0 or budget.cancelled.is_set():
            options.terminate = True
            return


def _is_worth(shared: int, length: int) -> bool:
    """Return whether a row is better read from its `shared` first tokens on than with others."""
    return length - max(length - shared, _FULL_RUN) >= _WORTH_TOKENS


def _key(row: Sequence[int]) -> bytes:
    return blake2b(array("q", row).tobytes(), digest_size=16).digest()


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    if not np.isfinite(logits).all():
        raise EngineError("The model gave a logit that is not a number, so there is no verdict.")
    return logits
