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
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from guardrail_sdk import Message
from guardrail_sdk._engine import Engine
from guardrail_sdk._errors import ArtifactError, EngineError, EngineTimeout
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._layout import Layout
from guardrail_sdk._process import PerProcess
from guardrail_sdk._session import RunOptions, Session, open_session, run_options
from guardrail_sdk.artifact import MANIFEST, Artifact, hash_files, open_artifact
from guardrail_sdk.prompt import template
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


class Counting:
    """A session that counts the rows it reads, and spoils the logits if told to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.read = 0
        self.tokens = 0
        self.spoilt = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def run(
        self,
        output_names: Sequence[str],
        input_feed: Mapping[str, NDArray[np.generic]],
        run_options: RunOptions,
    ) -> Sequence[NDArray[np.float32]]:
        self.read += len(input_feed["input_ids"])
        self.tokens += input_feed["input_ids"].size
        found = self._session.run(output_names, input_feed, run_options)
        return [np.full_like(found[0], np.nan)] if self.spoilt else found


@pytest.fixture
def remembering(
    artifact: Artifact, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Engine, Counting]:
    counting = Counting(session)
    monkeypatch.setattr("guardrail_sdk._engine._REMEMBERED", 3)

    def open_counting(artifact: Artifact, kernel: Kernel) -> Counting:
        return counting

    monkeypatch.setattr("guardrail_sdk._engine.open_session", open_counting)
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


@pytest.mark.parametrize("artifact", ["tiny", "tiny-llama-guard"], indirect=True)
def test_what_prompts_begin_with_is_read_once(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(open_session(artifact))

    def open_counting(artifact: Artifact, kernel: Kernel) -> Counting:
        return counting

    monkeypatch.setattr("guardrail_sdk._engine.open_session", open_counting)
    fresh = altered(tmp_path, name=artifact.folder.name)
    first, second = tuple(range(1, 41)), tuple(range(2, 30))
    rows = [[*first, 7], [*first, 9, 8, 7, 6], [*second, 5, 5, 5], [3, 4, 5], list(first)]
    expected = Engine(fresh, "int4").classify(rows, Budget())
    answer = Engine(fresh, "int4").answer(rows[1], [78] * 20, -1, 4, Budget())
    counting.tokens = 0
    engine = Engine(fresh, "int4", prefixes=[first, second, (3, 4)])
    found = np.concatenate([engine.classify([row], Budget()) for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert counting.tokens == sum(map(len, [first, second, *rows])) - 2 * 40 - 28
    np.testing.assert_allclose(engine.classify(rows, Budget()), expected, atol=1e-3)
    again = engine.answer(rows[1], [78] * 20, -1, 4, Budget())
    np.testing.assert_allclose(again, answer, atol=1e-3)


def test_the_prompts_of_a_policy_share_its_text() -> None:
    artifact = open_artifact(DATA / "tiny-llama-guard")
    tokenizer = PromptTokenizer(artifact.tokenizer)
    layout = Layout(template("llama-guard-3"), tokenizer, artifact.manifest.context_length)
    prefixes = layout.prefixes()
    assert len(prefixes) == 2
    for prefix, role in zip(prefixes, ("user", "assistant"), strict=True):
        assert len(prefix) > 100
        for text in ("Hello", "7", "\n\nUser: hi", "शुभ", ""):
            conversation = [Message(role="user", content="hi"), Message(role=role, content=text)]
            (row,) = layout.rows(conversation, 1, Budget())
            assert row.ids[: len(prefix)] == prefix


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
