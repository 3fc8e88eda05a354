"""The hold-back buffer and the guarded stream: nothing leaves before a verdict that covers it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Generator, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import anyio
import pytest
from counting import Counting, counted
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrail_sdk import (
    Action,
    Blocked,
    Category,
    CategoryRule,
    CheckEvent,
    CheckResult,
    ConfigError,
    DefaultCodec,
    Guard,
    Hooks,
    Policy,
)
from guardrail_sdk._policy import REDACTED
from guardrail_sdk._session import open_session
from guardrail_sdk._stream import MAX_CHARS, MIN_CHARS, TAIL_CHARS, StreamWindow
from guardrail_sdk._types import Stage
from guardrail_sdk.artifact import open_artifact
from guardrail_sdk.testing import FakeModel

DATA = Path(__file__).parent / "data"

# A deadline per example would measure the machine's load.
few = settings(deadline=None, max_examples=50)
BAD = "☢bomb☢"
REDACT = Policy(categories=(CategoryRule(id=Category.S2, action=Action.REDACT),))

LOOKBEHIND = Policy(stream="lookbehind")

texts = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from(["A plain sentence, of some length. ", "数えます。", "\n", "।", "x" * 400]),
    ),
    max_size=30,
).map("".join)


@st.composite
def chunkings(draw: st.DrawFn, text: st.SearchStrategy[str] = texts) -> list[str]:
    """Any text in any chunks, empty ones included."""
    whole = draw(text)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=40)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def stream_of(chunks: list[str], guard: Guard) -> Iterator[str]:
    def chat(prompt: str) -> Iterator[str]:
        yield from chunks

    return guard.wrap(chat)("hello")


@few
@given(chunks=chunkings())
def test_an_allowed_stream_is_its_source(chunks: list[str]) -> None:
    assert list(stream_of(chunks, Guard(model=FakeModel()))) == chunks


@few
@given(chunks=chunkings())
def test_no_character_is_released_before_a_verdict_that_covers_it(chunks: list[str]) -> None:
    whole = "".join(chunks)
    model = FakeModel()
    guard = Guard(model=model)
    released = 0

    for chunk in stream_of(chunks, guard):
        released += len(chunk)
        covered = 0
        for conversation in model.seen[1:]:  # the first is the input
            judged = conversation[-1].content
            start = max(0, covered - TAIL_CHARS)
            assert whole.startswith(judged, start)
            covered = start + len(judged)
        assert released <= covered


@few
@given(chunks=chunkings(st.tuples(texts, texts).map(BAD.join)))
def test_an_unsafe_stream_ends_in_blocked_and_its_window_never_leaves(chunks: list[str]) -> None:
    released: list[str] = []

    with pytest.raises(Blocked):
        released.extend(stream_of(chunks, Guard(model=FakeModel([BAD]))))

    assert BAD not in "".join(released)
    assert "".join(chunks).startswith("".join(released))


@few
@given(chunks=chunkings(st.tuples(texts, texts).map(BAD.join)))
def test_redact_replaces_a_window_once_and_keeps_the_rest(chunks: list[str]) -> None:
    released = "".join(stream_of(chunks, Guard(model=FakeModel([BAD]), policy=REDACT)))
    before, found, after = released.partition(REDACTED)

    assert found
    assert BAD not in released
    assert REDACTED not in after
    assert "".join(chunks).startswith(before)
    assert "".join(chunks).endswith(after)


@few
@given(chunks=chunkings())
def test_lookbehind_releases_what_two_verdicts_cover(chunks: list[str]) -> None:
    ends = [0, 0]

    def note(event: CheckEvent, result: CheckResult) -> None:
        assert result.verdict is not None
        ends.append(result.verdict.span.end)

    guard = Guard(model=FakeModel(), policy=LOOKBEHIND, hooks=Hooks(after_output=note))
    whole = len("".join(chunks))
    stream = stream_of(chunks, guard)
    released: list[str] = []

    for chunk in stream:
        released.append(chunk)
        count = len("".join(released))
        assert count <= ends[-1]
        if ends[-1] < whole:
            assert count <= ends[-2], "the last window that was judged is still kept back"

    assert released == chunks


@few
@given(chunks=chunkings(st.tuples(texts, texts).map(BAD.join)))
def test_lookbehind_stops_what_only_shows_across_two_windows(chunks: list[str]) -> None:
    """Judged with all that waits, so nothing of a harm over two windows has left by then."""
    half = MIN_CHARS
    first, second = "q" * half + ". ", "y" * half + ". "
    guard = Guard(model=FakeModel([first + second]), policy=LOOKBEHIND)
    released: list[str] = []

    with pytest.raises(Blocked):
        released.extend(stream_of([*chunks, first, second], guard))

    assert "q" * half not in "".join(released)
    assert "".join(chunks).startswith("".join(released))


@few
@given(chunks=chunkings(st.tuples(texts, texts).map(BAD.join)))
def test_lookbehind_redacts_all_that_the_verdict_covers(chunks: list[str]) -> None:
    policy = REDACT.model_copy(update={"stream": "lookbehind"})
    released = "".join(stream_of(chunks, Guard(model=FakeModel([BAD]), policy=policy)))
    before, found, after = released.partition(REDACTED)

    assert found
    assert BAD not in released
    assert "".join(chunks).startswith(before)
    assert "".join(chunks).endswith(after)


@few
@given(chunks=chunkings(st.tuples(texts, texts).map(BAD.join)), mode=st.sampled_from(["b", "r"]))
def test_flag_holds_nothing_and_reports_everything(chunks: list[str], mode: str) -> None:
    base = REDACT if mode == "r" else Policy()
    policy = base.model_copy(update={"stream": "flag"})
    flagged: list[str] = []
    pulled: list[str] = []

    def note(event: CheckEvent, result: CheckResult) -> None:
        if result.decision.action is not Action.ALLOW:
            flagged.append(event.conversation[-1].content)

    def chat(prompt: str) -> Iterator[str]:
        for chunk in chunks:
            pulled.append(chunk)
            yield chunk

    guard = Guard(model=FakeModel([BAD]), policy=policy, hooks=Hooks(after_output=note))
    released: list[str] = []
    for chunk in guard.wrap(chat)("hi"):
        released.append(chunk)
        assert released == pulled, "no chunk is kept back"

    assert released == chunks
    assert flagged
    assert all(BAD in text for text in flagged)


def flagging() -> tuple[Guard, list[str]]:
    flagged: list[str] = []

    def note(event: CheckEvent, result: CheckResult) -> None:
        if result.decision.action is not Action.ALLOW:
            flagged.append(event.conversation[-1].content)

    policy = Policy(stream="flag")
    return Guard(model=FakeModel([BAD]), policy=policy, hooks=Hooks(after_output=note)), flagged


def test_flag_reports_what_has_left_when_the_reader_hangs_up() -> None:
    for text in (BAD, f"{BAD}. " * 20):
        guard, flagged = flagging()
        stream = stream_of([text, "more"], guard)
        assert next(stream) == text
        stream.close()  # type: ignore[attr-defined]
        assert len(flagged) == 1


def test_flag_reports_what_has_left_when_the_source_fails() -> None:
    guard, flagged = flagging()

    def chat(prompt: str) -> Iterator[str]:
        yield BAD
        raise LookupError

    with pytest.raises(LookupError):
        list(guard.wrap(chat)("hi"))
    assert flagged == [BAD]


@pytest.mark.anyio
async def test_flag_reports_what_has_left_when_the_reader_is_cancelled() -> None:
    guard, flagged = flagging()

    async def chat(prompt: str) -> AsyncGenerator[str]:
        yield BAD
        await anyio.sleep(3600)

    with anyio.move_on_after(0.2):
        async for _ in guard.wrap(chat)("hi"):
            pass
    assert flagged == [BAD]


def test_flag_without_a_hook_that_takes_reports_is_refused() -> None:
    guard = Guard(model=FakeModel(), policy=Policy(stream="flag"))

    def chat(prompt: str) -> Iterator[str]:
        yield prompt

    with pytest.raises(ConfigError, match="after_output"):
        guard.wrap(chat)


def test_lookbehind_keeps_chunks_without_text_in_their_place() -> None:
    chunks = [{"content": "One. " * 20}, {"content": None, "usage": 3}, {"content": "Two. " * 20}]

    def chat(prompt: str) -> Iterator[object]:
        yield from chunks

    released = list(Guard(model=FakeModel(), policy=LOOKBEHIND).wrap(chat)("hi"))

    assert [id(chunk) for chunk in released] == [id(chunk) for chunk in chunks]


class Lanes(DefaultCodec):
    """Chunks are dicts from a lane's name to its piece."""

    def read_output(self, value: object) -> Mapping[Hashable, str]:
        return cast("dict[Hashable, str]", value)

    def write_output(self, value: object, text: str) -> object:
        return dict.fromkeys(cast("dict[Hashable, str]", value), text)


# Each lane has an alphabet of its own, so that one sees which a verdict is of.
ALPHABETS = {"a": "aA. ", "b": "bB!\t", "c": "cC?\n"}


@st.composite
def lane_chunks(draw: st.DrawFn, most: int = 200) -> list[dict[str, str]]:
    """Pieces of up to three lanes, in any mixture."""
    pieces = {
        lane: st.tuples(st.text(alphabet, min_size=1, max_size=3), st.integers(0, most)).map(
            lambda pair: (pair[0] * 200)[: pair[1]]
        )
        for lane, alphabet in ALPHABETS.items()
    }
    chunk = st.fixed_dictionaries({}, optional=pieces)
    return draw(st.lists(chunk, max_size=30))


def lanes_of(chunks: list[dict[str, str]], guard: Guard) -> Iterator[dict[str, str]]:
    def chat(prompt: str) -> Iterator[dict[str, str]]:
        yield from chunks

    return guard.wrap(chat, codec=Lanes())("hello")


def texts_of(chunks: Iterable[dict[str, str]]) -> dict[str, str]:
    texts = dict.fromkeys(ALPHABETS, "")
    for chunk in chunks:
        for lane, piece in chunk.items():
            texts[lane] += piece
    return texts


@few
@given(chunks=lane_chunks(), policy=st.sampled_from([Policy(), LOOKBEHIND]))
def test_an_allowed_stream_of_lanes_is_its_source(
    chunks: list[dict[str, str]], policy: Policy
) -> None:
    released = list(lanes_of(chunks, Guard(model=FakeModel(), policy=policy)))

    assert [id(chunk) for chunk in released] == [id(chunk) for chunk in chunks]


@few
@given(chunks=lane_chunks(), policy=st.sampled_from([Policy(), LOOKBEHIND]))
def test_no_character_of_a_lane_is_released_before_a_verdict_that_covers_it(
    chunks: list[dict[str, str]], policy: Policy
) -> None:
    whole = texts_of(chunks)
    covered = dict.fromkeys(ALPHABETS, 0)
    released: list[dict[str, str]] = []

    def note(event: CheckEvent, result: CheckResult) -> None:
        judged = event.conversation[-1].content
        (lane,) = [lane for lane in whole if judged[0] in ALPHABETS[lane]]
        assert result.verdict is not None
        span = result.verdict.span
        assert whole[lane][span.start : span.end] == judged
        assert span.start <= max(0, covered[lane] - TAIL_CHARS) or policy.stream == "lookbehind"
        assert span.start <= covered[lane] < span.end
        covered[lane] = span.end

    guard = Guard(model=FakeModel(), policy=policy, hooks=Hooks(after_output=note))
    for chunk in lanes_of(chunks, guard):
        released.append(chunk)
        for lane, text in texts_of(released).items():
            assert len(text) <= covered[lane]


@few
@given(before=lane_chunks(), after=lane_chunks(), policy=st.sampled_from([Policy(), LOOKBEHIND]))
def test_what_is_unsafe_in_a_lane_never_leaves_however_it_is_interleaved(
    before: list[dict[str, str]], after: list[dict[str, str]], policy: Policy
) -> None:
    unsafe = [{"a": piece, "b": "!"} for piece in BAD]
    released: list[dict[str, str]] = []

    guard = Guard(model=FakeModel([BAD]), policy=policy)
    with pytest.raises(Blocked):
        released.extend(lanes_of([*before, *unsafe, *after], guard))

    assert released == [*before, *unsafe][: len(released)]
    assert BAD not in texts_of(released)["a"]


@few
@given(before=lane_chunks(), after=lane_chunks(), mode=st.sampled_from(["hold", "lookbehind"]))
def test_redacting_one_lane_leaves_the_chunks_of_others_as_they_are(
    before: list[dict[str, str]], after: list[dict[str, str]], mode: str
) -> None:
    chunks = [*before, {"a": BAD}, *after]
    policy = REDACT.model_copy(update={"stream": mode})

    released = list(lanes_of(chunks, Guard(model=FakeModel([BAD]), policy=policy)))

    assert len(released) == len(chunks)
    for chunk, source in zip(released, chunks, strict=True):
        assert chunk is source or "a" in source
        assert set(chunk) == set(source)
    texts = texts_of(released)
    assert not set(BAD) & set(texts["a"].replace(REDACTED, ""))
    assert texts["a"].count(REDACTED) == 1


@few
@given(chunks=lane_chunks())
def test_flag_holds_no_lane(chunks: list[dict[str, str]]) -> None:
    judged: list[str] = []

    def note(event: CheckEvent, result: CheckResult) -> None:
        assert result.verdict is not None
        judged.append(event.conversation[-1].content)

    guard = Guard(model=FakeModel(), policy=Policy(stream="flag"), hooks=Hooks(after_output=note))
    pulled: list[dict[str, str]] = []

    def chat(prompt: str) -> Iterator[dict[str, str]]:
        for chunk in chunks:
            pulled.append(chunk)
            yield chunk

    released: list[dict[str, str]] = []
    for chunk in guard.wrap(chat, codec=Lanes())("hi"):
        released.append(chunk)
        assert released == pulled
    seen = "".join(judged)
    for text in texts_of(chunks).values():
        assert all(seen.count(char) >= text.count(char) for char in set(text))


@few
@given(chunks=lane_chunks(most=40))
def test_the_cost_of_lanes_is_linear_too(chunks: list[dict[str, str]]) -> None:
    """A lane closes early only after others have grown: at worst each pays for the other."""
    model = FakeModel()

    list(lanes_of(chunks, Guard(model=model)))

    judged = sum(len(conversation[-1].content) for conversation in model.seen[1:])
    total = sum(map(len, texts_of(chunks).values()))
    assert judged <= 10 * total + len(ALPHABETS) * TAIL_CHARS


@pytest.mark.parametrize("policy", [Policy(), LOOKBEHIND], ids=["hold", "lookbehind"])
def test_a_lane_that_falls_silent_does_not_hold_up_the_others(policy: Policy) -> None:
    pulled: list[str] = []

    def chat(prompt: str) -> Iterator[dict[str, str]]:
        for lane in ["a", *"b" * 100]:
            pulled.append(lane)
            yield {lane: "Ten chars "}

    stream = Guard(model=FakeModel(), policy=policy).wrap(chat, codec=Lanes())("hi")

    assert [*next(stream)] == ["a"]
    assert [*next(stream)] == ["b"]
    assert 10 * len(pulled) <= 4 * MAX_CHARS


@few
@given(before=st.integers(0, 900), size=st.integers(1, 50))
def test_words_that_span_two_windows_are_seen(before: int, size: int) -> None:
    attack = "one two three four. " * 5
    text = "a " * before + attack
    chunks = [text[i : i + size] for i in range(0, len(text), size)]

    with pytest.raises(Blocked):
        list(stream_of(chunks, Guard(model=FakeModel([attack]))))


@few
@given(chunks=chunkings())
@example(chunks=["Short windows have the most overlap. " * 3] * 40)
def test_no_more_than_five_times_a_streams_text_is_judged(chunks: list[str]) -> None:
    """A window but for the last has 80 characters or more; 320 before it are judged again."""
    model = FakeModel()

    list(stream_of(chunks, Guard(model=model)))

    judged = sum(len(conversation[-1].content) for conversation in model.seen[1:])
    assert judged <= 5 * len("".join(chunks)) + TAIL_CHARS


SENTENCES = (
    "The train to the coast leaves at nine and comes back at seven. ",
    "How do I bake bread when the oven is broken? ",
    "She asked whether the report would be finished before the meeting. ",
    "Tell me what you think of the weather in the mountains today. ",
)


def tokens_read(
    session: Counting, folder: Path, sentences: int, prompt: str = "A short question."
) -> int:
    """Return how many tokens are read of a stream that shares no sentence with one of others."""

    def chat(prompt: str) -> Iterator[str]:
        session.runs.clear()  # what was read so far was the input
        for number in range(sentences):
            yield f"{sentences} {number} {SENTENCES[number % 4]}"

    guard = Guard(folder, Policy(input_threshold=1.0, output_threshold=1.0))
    assert len(list(guard.wrap(chat)(prompt))) == sentences
    return session.tokens


@pytest.mark.parametrize("name", ["tiny", "tiny-encoder", "tiny-llama-guard"])
@pytest.mark.parametrize("prompt", ["A short question.", "A long question. " * 60])
def test_the_tokens_that_a_model_reads_are_linear_in_the_length_of_the_stream(
    name: str, prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a window is read with is bounded, however long stream and prompt get."""
    folder = shutil.copytree(DATA / name, tmp_path / "model")
    session = counted(monkeypatch, open_session(open_artifact(folder)))

    few, more, most = (
        tokens_read(session, folder, sentences, prompt) for sentences in (30, 60, 90)
    )

    assert most - more < 1.3 * (more - few)


def test_a_decoder_reads_a_stream_on_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(DATA / "tiny-llama-guard", tmp_path / "model")
    session = counted(monkeypatch, open_session(open_artifact(folder)))
    extended = tokens_read(session, folder, 60)

    monkeypatch.setattr("guardrail_sdk._engine._WORTH_TOKENS", 10**6)
    monkeypatch.setattr("guardrail_sdk._flow.GROWN_TAIL_CHARS", 0)
    anew = tokens_read(session, shutil.copytree(folder, tmp_path / "anew"), 60)
    assert 2 * extended < anew


def test_the_cost_is_linear_in_the_length_of_the_stream() -> None:
    judged: dict[int, int] = {}
    for sentences in (100, 200):
        model = FakeModel()
        list(stream_of(["Some words and more. "] * sentences, Guard(model=model)))
        judged[sentences] = sum(len(conversation[-1].content) for conversation in model.seen)

    assert judged[200] < 2.1 * judged[100]


def test_a_window_closes_at_a_sentence_end_or_when_it_is_full() -> None:
    window: StreamWindow[str] = StreamWindow(min_chars=10, max_chars=20, tail_chars=5)

    assert not window.push({1: "Hi. "}, "a")
    assert not window.push({1: "This is"}, "b")
    (sentence,) = window.push({1: " it! "}, "c")
    window.passed(sentence)
    (full,) = window.push({1: "x" * 20}, "d")

    assert (sentence.text, sentence.tail, sentence.start) == ("Hi. This is it! ", "", 0)
    assert (full.text, full.tail, full.start) == ("x" * 20, " it! ", 11)
    assert not window.flush()


def test_a_tail_may_grow_before_it_is_cut() -> None:
    window: StreamWindow[str] = StreamWindow(
        min_chars=4, max_chars=4, tail_chars=5, most_tail_chars=13
    )
    judged: list[tuple[int, str]] = []
    for text in ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"):
        (closed,) = window.push({1: text}, text)
        judged.append((closed.start, closed.judged))
        window.passed(closed)

    assert judged == [
        (0, "aaaa"),
        (0, "aaaabbbb"),
        (0, "aaaabbbbcccc"),
        (0, "aaaabbbbccccdddd"),
        (11, "cddddeeee"),
        (11, "cddddeeeeffff"),
    ]


def test_after_a_redacted_window_nothing_of_it_is_judged_again() -> None:
    window: StreamWindow[str] = StreamWindow(min_chars=1, max_chars=5, tail_chars=5)
    (first,) = window.push({1: "secret"}, "a")
    window.replaced(first, "gone")
    (second,) = window.push({1: "public"}, "b")

    assert list(window.leaving()) == [("a", "gone")]
    assert (second.judged, second.start) == ("public", 6)


@pytest.mark.parametrize("end", list(".!?…\n。！？؟۔।॥។"))
def test_sentences_end_in_many_scripts(end: str) -> None:
    window: StreamWindow[str] = StreamWindow(min_chars=5, max_chars=100)

    assert not window.push({1: "12345"}, "a")
    assert window.push({1: end}, "b")


def test_chunks_without_text_keep_their_place() -> None:
    role, usage = {"role": "assistant", "content": None}, {"content": None, "usage": 3}
    text = {"content": "Hello. "}

    def chat(prompt: str) -> Iterator[object]:
        yield role
        yield text
        yield usage

    released = list(Guard(model=FakeModel()).wrap(chat)("hi"))

    assert [id(chunk) for chunk in released] == [id(role), id(text), id(usage)]


def test_the_verdicts_span_counts_from_the_start_of_the_stream() -> None:
    chunks = ["a" * MAX_CHARS, "b" * MAX_CHARS, BAD]

    with pytest.raises(Blocked) as raised:
        list(stream_of(chunks, Guard(model=FakeModel([BAD]))))

    verdict = raised.value.verdict
    assert verdict is not None
    assert (verdict.span.start, verdict.span.end) == (MAX_CHARS, 2 * MAX_CHARS + len(BAD))


def test_on_block_gives_the_last_item() -> None:
    def chat(prompt: str) -> Iterator[str]:
        yield "x" * MAX_CHARS
        yield BAD
        yield "never"

    guarded = Guard(model=FakeModel([BAD])).wrap(chat, on_block=lambda decision: decision.category)

    assert list(guarded("hi")) == ["x" * MAX_CHARS, Category.S2]


def test_a_source_that_fails_midway_releases_only_what_was_judged() -> None:
    def chat(prompt: str) -> Iterator[str]:
        yield "x" * MAX_CHARS
        yield "not judged yet"
        raise OSError("the line broke")

    released: list[str] = []
    with pytest.raises(OSError, match="the line broke"):
        released.extend(Guard(model=FakeModel()).wrap(chat)("hi"))

    assert released == ["x" * MAX_CHARS]


class Closing:
    """A source that notes how it ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def chat(self, prompt: str) -> Generator[str, object, None]:
        try:
            while True:
                yield "Words and words and words. "
        except GeneratorExit:
            self.ended.append("closed")
            raise
        except ValueError:
            self.ended.append("thrown")
            yield "Recovered."

    async def chat_async(self, prompt: str) -> AsyncGenerator[str, object]:
        try:
            while True:
                yield "Words and words and words. "
        finally:
            self.ended.append("closed")


def test_closing_the_guarded_generator_closes_the_source() -> None:
    source = Closing()
    stream = Guard(model=FakeModel()).wrap(source.chat)("hi")
    next(stream)

    stream.close()

    assert source.ended == ["closed"]


def test_a_consumer_that_stops_early_leaves_nothing_running() -> None:
    source = Closing()

    for _ in Guard(model=FakeModel()).wrap(source.chat)("hi"):
        break

    assert source.ended == ["closed"]


def test_a_block_closes_the_source() -> None:
    source = Closing()

    with pytest.raises(Blocked):
        list(Guard(model=FakeModel(["words"])).wrap(source.chat)("hi"))

    assert source.ended == ["closed"]


@pytest.mark.anyio
async def test_closing_the_guarded_async_generator_closes_the_source() -> None:
    source = Closing()
    stream = Guard(model=FakeModel()).wrap(source.chat_async)("hi")
    await anext(stream)

    await stream.aclose()

    assert source.ended == ["closed"]


@pytest.mark.anyio
async def test_a_cancelled_async_stream_closes_the_source() -> None:
    source = Closing()
    stream = Guard(model=FakeModel()).wrap(source.chat_async)("hi")

    with anyio.CancelScope() as scope:
        async for _ in stream:
            scope.cancel()

    assert source.ended == ["closed"]


def test_what_is_thrown_in_reaches_the_source_and_its_answer_is_judged() -> None:
    source = Closing()
    stream = Guard(model=FakeModel()).wrap(source.chat)("hi")
    next(stream)

    stream.throw(ValueError())
    rest = list(stream)

    assert source.ended == ["thrown"]
    assert rest[-1] == "Recovered."


def test_what_is_sent_reaches_the_source() -> None:
    received: list[object] = []

    def chat(prompt: str) -> Generator[str, object, None]:
        while len(received) < 2:
            received.append((yield "x" * MAX_CHARS))

    stream = Guard(model=FakeModel()).wrap(chat)("hi")
    next(stream)
    stream.send("first")
    with pytest.raises(StopIteration):
        stream.send("second")

    assert received == ["first", "second"]


def test_a_generators_return_value_is_judged_too() -> None:
    def chat(answer: str) -> Generator[str, object, str]:
        yield "Hello. "
        return answer

    def scores(stage: Stage, text: str) -> float:
        return float(stage == "output" and BAD in text)

    guarded = Guard(model=FakeModel(scores)).wrap(chat)

    def result(answer: str) -> Iterator[object]:
        yield (yield from guarded(answer))

    assert list(result("fine")) == ["Hello. ", "fine"]
    with pytest.raises(Blocked):
        list(result(BAD))
