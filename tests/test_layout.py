"""The layout of prompts: nothing of the judged message is lost, and every prompt fits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unigram import unigram

from guardrail_sdk._errors import ArtifactError, EngineTimeout, InputTooLong
from guardrail_sdk._judge import Budget
from guardrail_sdk._layout import Layout, Row
from guardrail_sdk._types import Message, Role
from guardrail_sdk.artifact import open_artifact
from guardrail_sdk.prompt import Template, template
from guardrail_sdk.tokenizer import PromptTokenizer

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A layout, and what it was made of."""

    layout: Layout
    template: Template
    tokenizer: PromptTokenizer
    most_tokens: int

    def ids(self, conversation: list[Message]) -> list[int]:
        return self.tokenizer.encode(self.template.render(conversation))

    def rows(self, conversation: list[Message], most: int = 10**6) -> list[Row]:
        return self.layout.rows(conversation, most, Budget())


def setup_of(name: str) -> Setup:
    """Return the setup of a tiny model; `unigram` is the encoder's with another tokenizer."""
    artifact = open_artifact(DATA / ("tiny-encoder" if name == "unigram" else name))
    chosen = template(artifact.manifest.template)
    tokenizer = PromptTokenizer(unigram() if name == "unigram" else artifact.tokenizer)
    most_tokens = artifact.manifest.context_length
    return Setup(
        layout=Layout(chosen, tokenizer, most_tokens),
        template=chosen,
        tokenizer=tokenizer,
        most_tokens=most_tokens,
    )


@pytest.fixture(scope="module", params=["tiny", "tiny-encoder", "unigram", "tiny-llama-guard"])
def setup(request: pytest.FixtureRequest) -> Setup:
    return setup_of(str(request.param))


def said(content: str, role: Role = "user") -> Message:
    return Message(role=role, content=content)


messages = st.builds(
    said,
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(
                [
                    *("The train leaves at nine. " * 20, "User:\n" * 40, "ab" * 150, "🧨" * 60),
                    *("नमस्ते " * 30, "<END CONVERSATION>" * 20, "<user>" * 30, "\ufdfa" * 90),
                    *(" " * 400, "\n" * 200, "\x04" * 99),
                ]
            ),
        ),
        max_size=6,
    ).map("".join),
    st.sampled_from(["user", "assistant"]),
)


@settings(max_examples=30)
@given(earlier=st.lists(messages, max_size=3), judged=messages)
def test_every_prompt_fits_and_holds_its_part(
    setup: Setup, earlier: list[Message], judged: Message
) -> None:
    context = list(setup.layout.context([*earlier, judged]))

    rows = setup.rows([*context, judged])

    assert rows[0].span.start == 0
    assert rows[-1].span.end == len(judged.content)
    for before, after in pairwise(rows):
        assert after.span.start <= before.span.end
    for row in rows:
        part = judged.content[row.span.start : row.span.end]
        assert len(row.ids) <= setup.most_tokens
        assert list(row.ids) == setup.ids([*context, said(part, judged.role)])


@settings(max_examples=30)
@given(earlier=st.lists(messages, max_size=4), judged=messages)
def test_the_context_is_the_end_of_what_was_said(
    setup: Setup, earlier: list[Message], judged: Message
) -> None:
    context = setup.layout.context([*earlier, judged])

    kept = earlier[len(earlier) - len(context) :]
    assert [message.role for message in context] == [message.role for message in kept]
    assert list(context[1:]) == kept[1:]
    if context:
        assert kept[0].content.endswith(context[0].content)


def test_what_fits_is_one_prompt_with_all_of_the_context(setup: Setup) -> None:
    conversation = [said("Hello"), said("Hi!", "assistant"), said("How are you?")]

    assert setup.layout.context(conversation) == tuple(conversation[:-1])
    (row,) = setup.rows(conversation)
    assert list(row.ids) == setup.ids(conversation)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\0", "\u200b", "\ud800"], ids=ascii)
def test_a_message_of_nothing_is_still_a_prompt(setup: Setup, text: str) -> None:
    (row,) = setup.rows([said(text)])

    assert len(row.ids) > 0
    assert (row.span.start, row.span.end) == (0, len(text))


def test_a_long_context_leaves_half_of_the_room_to_a_long_message(setup: Setup) -> None:
    long = "The train to the coast leaves at nine and comes back at seven. " * 60
    judged = said(long)
    room = setup.most_tokens - len(setup.ids([said("")]))

    context = list(setup.layout.context([said(long), judged]))

    taken = len(setup.ids([*context, said("")])) - len(setup.ids([said("")]))
    assert room // 3 <= taken <= room // 2 + 1


def test_a_short_message_leaves_more_room_to_the_context(setup: Setup) -> None:
    long = "The train to the coast leaves at nine and comes back at seven. " * 60
    room = setup.most_tokens - len(setup.ids([said("")]))

    conversation = [said(long), said("And then?")]
    context = list(setup.layout.context(conversation))

    taken = len(setup.ids([*context, said("")])) - len(setup.ids([said("")]))
    assert taken > room // 2 + 1
    assert len(setup.rows([*context, conversation[-1]])) == 1


def test_a_message_beyond_the_most_windows_is_refused(setup: Setup) -> None:
    conversation = [said("The train to the coast leaves at nine. " * 200)]
    needed = len(setup.rows(conversation))

    assert len(setup.rows(conversation, needed)) == needed
    with pytest.raises(InputTooLong, match=f"more than {needed - 1} windows") as caught:
        setup.rows(conversation, needed - 1)
    assert "train" not in str(caught.value)


def test_windows_of_text_that_grows_in_the_template_are_cut_again() -> None:
    """Each forged turn takes a token more in the prompt than in the message."""
    setup = setup_of("tiny-llama-guard")

    rows = setup.rows([said("User:\n" * 500)])

    assert all(len(row.ids) <= setup.most_tokens for row in rows)
    assert rows[-1].span.end == len("User:\n" * 500)


@pytest.mark.parametrize("length", [1, 90, 600])
def test_text_without_a_boundary_between_tokens_is_cut_all_the_same(length: int) -> None:
    """Each of these characters becomes four words, the last of which runs into the next's first."""
    setup = setup_of("unigram")

    rows = setup.rows([said("\ufdfa" * length)])

    assert (rows[0].span.start, rows[-1].span.end) == (0, length)
    assert all(after.start <= before.end for before, after in pairwise(row.span for row in rows))
    assert all(len(row.ids) <= setup.most_tokens for row in rows)
    assert len(rows) <= 1 + length // 4


def test_a_spent_budget_ends_the_cutting(setup: Setup) -> None:
    budget = Budget()
    budget.cancelled.set()

    with pytest.raises(EngineTimeout):
        setup.layout.rows([said("word " * 5000)], 10**6, budget)


def test_a_context_shorter_than_the_template_is_refused(setup: Setup) -> None:
    shortest = len(setup.ids([said("", "assistant")]))

    with pytest.raises(ArtifactError, match="too short for its template"):
        Layout(setup.template, setup.tokenizer, shortest + 8)
