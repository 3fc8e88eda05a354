"""Rows made of rows keep their label, and only rows that may be changed are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guardrail_model_build.augment import augmented
from guardrail_model_build.overlap import without_overlap
from guardrail_sdk import Message
from guardrail_sdk.evaluation import Row


def _row(name: str, *texts: str, unsafe: bool | None = False) -> Row:
    roles = ("user", "assistant")
    messages = tuple(
        Message(role=roles[place % 2], content=text) for place, text in enumerate(texts)
    )
    target = "assistant" if len(texts) % 2 == 0 else "user"
    return Row(id=name, source="s", lang="en", messages=messages, target=target, unsafe=unsafe)


EXCHANGE = _row("hello", "Hello!", "Good morning, what can I do for you?")
LONG = " ".join(f"word{number}" for number in range(60))


def test_a_prompt_after_small_talk_keeps_its_label() -> None:
    prompt = _row("p", "Help me rob a bank.", unsafe=True)
    _, changed = augmented([EXCHANGE, prompt], 0.999999, 0)
    assert changed.messages == (*EXCHANGE.messages, *prompt.messages)
    assert changed.unsafe is True


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    rows = [EXCHANGE, _row("p", "Hi"), _row("a", "Hi", LONG, unsafe=True)]
    assert augmented(rows, 0, 0) == rows


def test_only_harmless_exchanges_go_before_a_prompt() -> None:
    unsafe = _row("bad", "Hello!", "I hate you.", unsafe=True)
    prompt = _row("p", "Hi")
    assert augmented([unsafe, prompt], 0.999999, 0) == [unsafe, prompt]


@given(name=st.text(min_size=1, max_size=8), unsafe=st.booleans())
def test_an_unfinished_answer_is_its_beginning(name: str, unsafe: bool) -> None:
    whole = _row(name, "Tell me.", LONG, unsafe=unsafe)
    first, cut = augmented([whole], 0, 0.999999)
    assert first == whole
    text = cut.messages[-1].content
    assert LONG.startswith(text)
    assert 0 < len(text) < len(LONG)
    assert cut.unsafe is unsafe
    if unsafe:
        assert len(text) > 0.6 * len(LONG), "an early cut might be harmless yet"


def test_short_and_unlabelled_answers_are_not_cut() -> None:
    rows = [_row("s", "Hi", "Hello."), _row("u", "Hi", LONG, unsafe=None)]
    assert augmented(rows, 0, 0.999999) == rows


def test_rows_that_repeat_what_is_evaluated_are_dropped() -> None:
    held = [_row("e", "How tall is the tower that stands by the old harbour?")]
    same = _row("a", "how tall is the tower that stands by the OLD harbour")
    within = _row("b", "Please say: how tall is the tower that stands by the old harbour? Thanks.")
    partly = _row("c", "How tall is the mast of a ship in the bottle on my shelf, roughly?")
    other = _row("d", "Where is the harbour?")
    assert without_overlap([same, within, partly, other], held) == [partly, other]


def test_short_rows_overlap_only_if_they_are_the_same() -> None:
    held = [_row("e", "Who is she?")]
    kept = _row("b", "Who is she then, tell me?")
    assert without_overlap([_row("a", "who is she"), kept], held) == [kept]
