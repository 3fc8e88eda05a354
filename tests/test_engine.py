"""The engine: exact logits in any batch, an end within the budget, one session per process."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from counting import Counting, counted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guardrail_sdk._engine import Engine
from guardrail_sdk._errors import ArtifactError, EngineError, EngineTimeout
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._process import PerProcess
from guardrail_sdk._session import Session, open_session, run_options
from guardrail_sdk._states import BLOCK, States
from guardrail_sdk.artifact import MANIFEST, Artifact, hash_files, open_artifact
from guardrail_sdk.tokenizer import PromptTokenizer

DATA = Path(__file__).parent / "data"
VOCABULARY = 400
CONTEXT = 128


FAMILIES = ("tiny", "tiny-encoder")
decoder_only = pytest.mark.parametrize("artifact", ["tiny"], indirect=True)
both = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return open_artifact(DATA / str(request.param))


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Engine:
    return Engine(artifact)


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every row read: what is remembered has tests of its own."""
    monkeypatch.setattr("guardrail_sdk._engine._REMEMBERED", 0)


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Session:
    return open_session(artifact)


def alone(session: Session, artifact: Artifact, row: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits for `row` alone, a decoder's last ones, from a feed of the test's own."""
    empty = np.zeros((1, artifact.manifest.kv_heads, 0, artifact.manifest.head_dim), np.float32)
    feed: dict[str, NDArray[np.generic]] = {
        node.name: empty for node in session.get_inputs() if node.name.startswith("past")
    }
    feed["input_ids"] = np.array([row], np.int64)
    feed["attention_mask"] = np.ones((1, len(row)), np.int64)
    (logits,) = session.run(["logits"], feed, run_options())
    return logits.reshape(-1, len(artifact.manifest.outputs))[-1]


rows = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=CONTEXT), min_size=1, max_size=12
)


@settings(max_examples=25)
@given(rows=rows)
def test_a_rows_logits_are_the_same_in_any_batch(
    artifact: Artifact, session: Session, engine: Engine, rows: list[list[int]]
) -> None:
    logits = engine.classify(rows, Budget())

    assert logits.shape == (len(rows), len(artifact.manifest.outputs))
    assert logits.dtype == np.float32
    pick = random.Random(len(rows)).randrange(len(rows))
    np.testing.assert_allclose(logits[pick], alone(session, artifact, rows[pick]), atol=2e-5)
    np.testing.assert_allclose(logits[::-1], engine.classify(rows[::-1], Budget()), atol=2e-5)


def test_no_rows_give_no_logits(artifact: Artifact, engine: Engine) -> None:
    assert engine.classify([], Budget()).shape == (0, len(artifact.manifest.outputs))


def greedy(session: Session, artifact: Artifact, ids: list[int], stop: int) -> list[int]:
    """Return the likeliest outputs after `ids`, reading everything anew for each."""
    said: list[int] = []
    while len(said) < 8 and (not said or said[-1] != stop):
        logits = alone(session, artifact, [*ids, *(output + 100 for output in said)])
        said.append(int(logits.argmax()))
    return said


@decoder_only
@pytest.mark.parametrize("ids", [[5], [1, 200, 31, 7], list(range(50, 110))], ids=len)
def test_an_answer_with_a_cache_is_the_answer_without(
    artifact: Artifact, session: Session, engine: Engine, ids: list[int]
) -> None:
    feed = [100 + index for index in range(len(artifact.manifest.outputs))]
    endless = greedy(session, artifact, ids, stop=-1)
    stop = endless[-1]

    logits = engine.answer(ids, feed, stop, 8, Budget())

    assert logits.argmax(axis=1).tolist() == greedy(session, artifact, ids, stop)
    assert engine.answer(ids, feed, -1, 3, Budget()).argmax(axis=1).tolist() == endless[:3]


def test_a_spent_budget_ends_the_work_before_it_begins(engine: Engine) -> None:
    with pytest.raises(EngineTimeout):
        engine.classify([[1]], Budget(deadline=time.monotonic() - 1))


class CancelledInRun(threading.Event):
    """Becomes true once it was asked twice: before the work, and while a run goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._questions = 0

    def is_set(self) -> bool:
        self._questions += 1
        return self._questions > 1


def test_cancelling_ends_the_work(engine: Engine) -> None:
    rows = [[1] * CONTEXT for _ in range(1000)]

    with pytest.raises(EngineTimeout, match="cancelled"):
        engine.classify(rows, Budget(cancelled=CancelledInRun()))

    assert engine.classify([[1, 2, 3]], Budget()).shape[0] == 1


def test_no_thread_is_left_behind(engine: Engine) -> None:
    engine.classify([[1, 2]], Budget())

    for thread in threading.enumerate():
        if thread.name.startswith("guardrail-"):
            thread.join(timeout=30)
            assert not thread.is_alive()


def test_tokens_beyond_the_context_are_an_error_that_tells_nothing(engine: Engine) -> None:
    with pytest.raises(EngineError) as caught:
        engine.classify([[77] * (CONTEXT + 1)], Budget())

    assert_tells_nothing(caught.value)


@decoder_only
@pytest.mark.parametrize("length", [CONTEXT + 1, CONTEXT], ids=["prompt", "answer"])
def test_an_answer_beyond_the_context_is_an_error_that_tells_nothing(
    engine: Engine, length: int
) -> None:
    with pytest.raises(EngineError) as caught:
        engine.answer([77] * length, [78] * 16, -1, 4, Budget())

    assert_tells_nothing(caught.value)


def assert_tells_nothing(error: EngineError) -> None:
    """Token ids spell the text, and the library's messages may hold some."""
    assert not re.search(r"\d", str(error))
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_the_engine_knows_the_ids_of_its_embedding(artifact: Artifact, engine: Engine) -> None:
    tokens = PromptTokenizer(artifact.tokenizer).largest_id + 1

    assert all(engine.knows(token) for token in (0, tokens // 2, tokens - 1))
    assert not any(engine.knows(token) for token in (tokens, tokens + 1, 10**6))


def altered(
    folder: Path,
    change: Callable[[Path], object] = lambda folder: None,
    manifest: Mapping[str, object] | None = None,
    name: str = "tiny",
) -> Artifact:
    """Copy a tiny model to `folder`, change its files or manifest, and seal it again."""
    shutil.copytree(DATA / name, folder, dirs_exist_ok=True)
    change(folder)
    path = folder / MANIFEST
    data = json.loads(path.read_text(encoding="utf-8"))
    data["files"] = dict(hash_files(folder, tuple(data["files"])))
    path.write_text(json.dumps({**data, **(manifest or {})}), encoding="utf-8")
    return open_artifact(folder)


def spoil(folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)


@both
def test_logits_that_are_no_numbers_are_an_error(tmp_path: Path, name: str) -> None:
    engine = Engine(altered(tmp_path, spoil, name=name))

    with pytest.raises(EngineError, match="not a number"):
        engine.classify([[1, 2, 3]], Budget())


def test_an_answer_of_no_numbers_is_an_error(tmp_path: Path) -> None:
    engine = Engine(altered(tmp_path, spoil))

    with pytest.raises(EngineError, match="not a number"):
        engine.answer([1, 2, 3], list(range(16)), 0, 4, Budget())


@pytest.mark.parametrize("wrong", [{"layers": 3}, {"layers": 1}, {"kv_heads": 4}, {"head_dim": 8}])
def test_a_graph_that_the_manifest_does_not_describe_is_refused(
    tmp_path: Path, wrong: dict[str, int]
) -> None:
    with pytest.raises(ArtifactError, match="other inputs or outputs"):
        Engine(altered(tmp_path, manifest=wrong)).load()


@pytest.mark.parametrize(
    ("name", "other"),
    [("tiny", "tiny-encoder"), ("tiny-encoder", "tiny"), ("tiny", "tiny-llama-guard")],
)
def test_a_graph_of_another_model_is_refused(tmp_path: Path, name: str, other: str) -> None:
    """Sealed with its hashes, as a build that mixes up its stages would do."""

    def swap(folder: Path) -> None:
        for file in ("model.onnx", "model.onnx.data"):
            shutil.copy(DATA / other / file, folder / file)

    with pytest.raises(ArtifactError, match="other inputs or outputs"):
        Engine(altered(tmp_path, swap, name=name)).load()


@both
def test_a_damaged_graph_is_refused(tmp_path: Path, name: str) -> None:
    def damage(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"not onnx")

    artifact = altered(tmp_path, damage, name=name)

    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        Engine(artifact).load()


@both
def test_weights_that_the_manifest_does_not_seal_are_refused(tmp_path: Path, name: str) -> None:
    names = ("model.onnx", "tokenizer.json")
    artifact = altered(tmp_path, manifest={"files": hash_files(DATA / name, names)}, name=name)

    with pytest.raises(
        ArtifactError, match=r"'model\.onnx\.data', which its manifest doesn't list"
    ):
        Engine(artifact).load()


def test_concurrent_first_uses_open_one_session(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Artifact] = []

    def counting(artifact: Artifact, kernel: Kernel) -> Session:
        opened.append(artifact)
        return open_session(artifact, kernel)

    monkeypatch.setattr("guardrail_sdk._engine.open_session", counting)
    fresh = altered(tmp_path, name=artifact.folder.name)
    row = list(range(1, 60))

    def classify(_: int) -> NDArray[np.float32]:
        return Engine(fresh).classify([row], Budget())

    with ThreadPoolExecutor(8) as pool:
        logits = list(pool.map(classify, range(16)))

    assert opened == [fresh]
    expected = Engine(artifact).classify([row], Budget())
    for found in logits:
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def remembering(
    artifact: Artifact, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Engine, Counting]:
    monkeypatch.setattr("guardrail_sdk._engine._REMEMBERED", 3)
    counting = counted(monkeypatch, session)
    return Engine(altered(tmp_path, name=artifact.folder.name)), counting


def test_rows_that_were_read_lately_are_not_read_again(
    remembering: tuple[Engine, Counting],
) -> None:
    engine, session = remembering
    first = engine.classify([[1, 2, 3], [4, 5]], Budget())
    again = engine.classify([[4, 5], [6], [1, 2, 3]], Budget())
    assert session.read == 3
    np.testing.assert_array_equal(again[[2, 0]], first)
    np.testing.assert_array_equal(engine.classify([[6]], Budget()), again[1:2])
    assert session.read == 3


def test_what_was_not_asked_for_longest_is_forgotten(remembering: tuple[Engine, Counting]) -> None:
    engine, session = remembering
    for row in ([1], [2], [3], [1], [4]):
        engine.classify([row], Budget())
    assert session.read == 4
    engine.classify([[1]], Budget())
    assert session.read == 4
    engine.classify([[2]], Budget())
    assert session.read == 5


def test_a_failure_is_not_remembered(remembering: tuple[Engine, Counting]) -> None:
    engine, session = remembering
    session.spoilt = True
    with pytest.raises(EngineError):
        engine.classify([[1, 2]], Budget())
    session.spoilt = False
    assert np.isfinite(engine.classify([[1, 2]], Budget())).all()


def test_a_remembered_row_takes_a_budget_all_the_same(
    remembering: tuple[Engine, Counting],
) -> None:
    engine, _ = remembering
    engine.classify([[1, 2]], Budget())
    with pytest.raises(EngineTimeout):
        engine.classify([[1, 2]], Budget(deadline=0.0))


class Growing:
    """A decoder's engine under watch.

    Attributes:
        engine: What extends rows that begin alike.
        session: Counts what the engine reads.
    """

    def __init__(self, artifact: Artifact, kernel: Kernel, patch: pytest.MonkeyPatch) -> None:
        self._artifact = artifact
        self._plain = open_session(artifact, kernel)
        self.session = counted(patch, self._plain)
        self.engine = Engine(artifact, kernel)

    def read(self, *rows: Sequence[int]) -> list[tuple[int, int]]:
        """Classify `rows`; return the runs, having made sure of the logits."""
        before = len(self.session.runs)
        for row, logits in zip(rows, self.engine.classify(rows, Budget()), strict=True):
            expected = alone(self._plain, self._artifact, row)
            np.testing.assert_allclose(logits, expected, atol=2e-3)
        return self.session.runs[before:]


@pytest.fixture(params=["int4", "int8", "float32"])
def growing(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Growing:
    return Growing(altered(tmp_path, name="tiny-llama-guard"), request.param, monkeypatch)


int4_only = pytest.mark.parametrize("growing", ["int4"], indirect=True)


def text(length: int, seed: int = 0) -> list[int]:
    """Return token ids as of a text; a longer one of the same seed begins with a shorter one."""
    return [random.Random(f"{seed} {place}").randrange(VOCABULARY) for place in range(length)]


TAIL = [5, 4, 3, 2, 1]


@st.composite
def growths(draw: st.DrawFn) -> list[list[int]]:
    """A text that grows by any pieces, and is cut and replaced at its end now and then."""
    row = text(draw(st.integers(1, 250)), draw(st.integers(0, 3)))
    rows = [row]
    for _ in range(draw(st.integers(1, 6))):
        kept = row[: len(row) - draw(st.sampled_from([0, 0, 0, 1, 17]))]
        row = [*kept, *draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40))]
        rows.append(row)
    return rows


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=growths())
def test_whatever_grows_is_judged_as_if_read_anew(growing: Growing, rows: list[list[int]]) -> None:
    for row in rows:
        growing.read([*row, *TAIL])


def test_of_what_grew_only_the_rest_is_read(growing: Growing) -> None:
    assert growing.read([*text(110), *TAIL]) == [(1, 115)]
    # That a row begins like another is known once there is another: it is read once more.
    assert growing.read([*text(150), *TAIL]) == [(1, 155)]
    assert growing.read([*text(190), *TAIL]) == [(1, 195 - 144)]
    assert growing.read([*text(230), *TAIL]) == [(1, 235 - 176)]
    # What doesn't grow: another text, and the first text cut short and continued otherwise.
    assert growing.read([*text(230, seed=1), *TAIL]) == [(1, 235)]
    assert growing.read([*text(130), *text(100, seed=2)]) == [(1, 230 - 128)]


def test_the_tokens_read_of_what_grows_are_linear_in_its_length(growing: Growing) -> None:
    """Beyond the first hundred, each token is read once; each time the tail and part of a block."""
    step = 12
    half = 0
    for length in range(step, 481, step):
        growing.read([*text(length), *TAIL])
        if length == 240:
            half = growing.session.tokens

    assert growing.session.tokens - half <= 240 + 20 * (len(TAIL) + BLOCK)


@int4_only
def test_only_what_grew_is_read_by_itself(growing: Growing) -> None:
    others = [text(length, seed) for seed, length in enumerate(range(150, 160))]
    assert len(growing.read(*others[:6])) == 1
    assert growing.read(*others[6:], [*others[0], *TAIL]) == [(4, 159), (1, 155)]
    # Little of a short row is saved, and the company of others saves more.
    growing.read([*text(48, seed=20), *TAIL])
    short = [[*text(48, seed=20), *text(count)] for count in range(30, 34)]
    assert growing.read(*short) == [(4, 81)]


@int4_only
def test_rows_that_begin_alike_share_what_is_kept(growing: Growing) -> None:
    policy = text(140)
    growing.read([*policy, *text(20, seed=1)])
    growing.read([*policy, *text(30, seed=2)])
    rows = [[*policy, *text(40 - seed, seed)] for seed in (3, 4, 5)]
    assert growing.read(*rows) == [(1, len(row) - 128) for row in rows]


@int4_only
@pytest.mark.parametrize("fault", ["ended", "spoilt"])
def test_of_a_run_that_was_ended_or_failed_nothing_is_kept(growing: Growing, fault: str) -> None:
    growing.read(text(150))
    for row in (text(200), text(250)):
        setattr(growing.session, fault, True)
        with pytest.raises(EngineError):
            growing.engine.classify([row], Budget())
        setattr(growing.session, fault, False)
        assert growing.session.runs[-1][1] == growing.read(row)[0][1]


@int4_only
def test_threads_that_grow_at_once_do_not_mix(growing: Growing) -> None:
    def grow(seed: int) -> None:
        for length in range(100, 400, 40):
            growing.read([*text(length, seed), *TAIL])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(grow, range(6), timeout=120))


def test_with_little_memory_as_much_is_read_on_from_as_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = altered(tmp_path, name="tiny-llama-guard")
    manifest = artifact.manifest
    block = BLOCK * manifest.layers * 2 * manifest.kv_heads * manifest.head_dim * 4
    monkeypatch.setattr("guardrail_sdk._engine.States", partial(States, 5 * block))
    growing = Growing(artifact, "int4", monkeypatch)
    for length in (150, 200):
        growing.read(text(length))

    assert growing.read(text(250)) == [(1, 250 - 5 * BLOCK)]


@int4_only
def test_an_answer_reads_on_from_what_is_kept(growing: Growing) -> None:
    row = text(200)
    expected = growing.engine.answer(row, [78] * 20, -1, 4, Budget())
    before = len(growing.session.runs)
    again = growing.engine.answer(row, [78] * 20, -1, 4, Budget())

    np.testing.assert_allclose(again, expected, atol=2e-3)
    assert growing.session.runs[before:] == [(1, 200 - 192), (1, 1), (1, 1), (1, 1)]


def test_a_value_that_could_not_be_made_is_made_again() -> None:
    values: PerProcess[str, int] = PerProcess()

    with pytest.raises(ZeroDivisionError):
        values.get("key", lambda: 1 // 0)

    assert values.get("key", lambda: 7) == 7
    assert values.get("key", lambda: 8) == 7


forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)
# What Python warns of, a fork while threads run, is what these tests are for.
unwarned = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_fork(work: Callable[[], list[float]]) -> list[float]:
    """Return what `work` returns in a forked child."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child(sender: Connection) -> None:
        sender.send(work())

    process = context.Process(target=child, args=(sender,), daemon=True)
    process.start()
    try:
        assert receiver.poll(60), "the child gave no answer"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


@forks
@unwarned
def test_a_forked_child_judges_like_its_parent(engine: Engine) -> None:
    rows = [[1, 2, 3], list(range(100))]
    expected = engine.classify(rows, Budget())

    found = in_fork(lambda: engine.classify(rows, Budget()).ravel().tolist())

    np.testing.assert_allclose(found, expected.ravel(), atol=1e-6)


@forks
@unwarned
def test_a_fork_while_a_value_is_made_does_not_lock_the_child() -> None:
    values: PerProcess[str, float] = PerProcess()
    making, finish = threading.Event(), threading.Event()

    def make() -> float:
        making.set()
        finish.wait(timeout=60)
        return 1.0

    thread = threading.Thread(target=values.get, args=("key", make))
    thread.start()
    assert making.wait(timeout=60)
    found = in_fork(lambda: [values.get("key", lambda: 2.0)])
    finish.set()
    thread.join()

    assert found == [2.0]
    assert values.get("key", lambda: 3.0) == 1.0
