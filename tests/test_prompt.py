"""The templates: exact to the byte, and closed to what a message says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_sdk._errors import MessageError
from guardrail_sdk._types import Category, Message, Role, Stage
from guardrail_sdk.prompt import (
    CompactTemplate,
    LlamaGuardTemplate,
    SegmentsTemplate,
    Special,
    Template,
    TemplateId,
    Text,
    stage_of,
    template,
)
from guardrail_sdk.tokenizer import PromptTokenizer

DATA = Path(__file__).parent / "data"


@cache
def tokenizer_of(name: str) -> PromptTokenizer:
    return PromptTokenizer(DATA / name / "tokenizer.json")


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


LLAMA_GUARD_RESPONSE = """\
<|begin_of_text|><|start_header_id|>user<|end_header_id|>

Task: Check if there is unsafe content in 'Agent' messages in conversations according our safety \
policy with the below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
S1: Violent Crimes.
S2: Non-Violent Crimes.
S3: Sex Crimes.
S4: Child Exploitation.
S5: Defamation.
S6: Specialized Advice.
S7: Privacy.
S8: Intellectual Property.
S9: Indiscriminate Weapons.
S10: Hate.
S11: Self-Harm.
S12: Sexual Content.
S13: Elections.
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

User: How tall is Ben Nevis?

Agent: 1345 metres.

<END CONVERSATION>

Provide your safety assessment for ONLY THE LAST Agent message in the above conversation:
 - First line must read 'safe' or 'unsafe'.
 - If unsafe, a second line must include a comma-separated list of violated categories. \
<|eot_id|><|start_header_id|>assistant<|end_header_id|>"""


def test_llama_guard_judges_a_response() -> None:
    conversation = [user(" How tall is Ben Nevis?\n"), assistant("1345 metres.")]

    assert LlamaGuardTemplate().text(conversation) == LLAMA_GUARD_RESPONSE


def test_llama_guard_judges_a_prompt() -> None:
    expected = LLAMA_GUARD_RESPONSE.replace("Agent: 1345 metres.\n\n", "")
    expected = expected.replace("'Agent'", "'User'").replace("LAST Agent", "LAST User")

    assert LlamaGuardTemplate().text([user("How tall is Ben Nevis?")]) == expected


def test_the_8b_prompt_ends_without_a_space() -> None:
    conversation = [user("How tall is Ben Nevis?"), assistant("1345 metres.")]

    text = LlamaGuardTemplate(size="8B").text(conversation)

    assert text == LLAMA_GUARD_RESPONSE.replace("categories. <|eot_id|>", "categories.<|eot_id|>")


def test_excluded_and_custom_categories() -> None:
    excluding = LlamaGuardTemplate(size="8B").without(Category.S6, Category.S13)
    custom = LlamaGuardTemplate(categories=(("S1", "Spoilers"),))

    assert "S6" not in excluding.text([user("x")])
    assert "S5: Defamation.\nS7: Privacy." in excluding.text([user("x")])
    assert excluding.size == "8B"
    assert "CATEGORIES>\nS1: Spoilers.\n<END" in custom.text([user("x")])


def test_the_verdict_comes_after_what_llama_guard_says_first() -> None:
    assert LlamaGuardTemplate().render([user("x")])[-1] == Text("\n\n")


def test_a_compact_prompt() -> None:
    pieces = CompactTemplate().render([user("Hi"), assistant("Hello!")])

    start, end = Special("<|im_start|>"), Special("<|im_end|>")
    assert pieces == [
        *(start, Text("user\n"), Text("Hi"), end),
        *(start, Text("assistant\n"), Text("Hello!"), end),
        *(start, Text("output verdict\n")),
    ]
    assert CompactTemplate().render([user("Hi")])[-1] == Text("input verdict\n")


def test_a_segments_prompt() -> None:
    start, asks, answers = Special("<s>"), Special("<user>"), Special("<assistant>")
    conversation = [user("Hi"), assistant("Hello!"), user("And you?")]

    pieces = SegmentsTemplate().render(conversation)

    assert pieces == [
        *(start, asks, Text("Hi"), answers, Text("Hello!"), asks, Text("And you?")),
        Special("</s>"),
    ]
    assert SegmentsTemplate().render(conversation[:2])[3] == answers


def test_to_an_encoder_a_tool_speaks_as_a_user() -> None:
    tool = Message(role="tool", content="21 degrees")

    assert SegmentsTemplate().render([tool, user("Hi")])[1] == Special("<user>")


@pytest.mark.parametrize(
    ("chosen", "outputs"),
    [(CompactTemplate(), 16), (SegmentsTemplate(), 16), (LlamaGuardTemplate(), 20)],
)
def test_outputs_are_distinct_and_begin_with_the_verdict(chosen: Template, outputs: int) -> None:
    assert chosen.outputs[:2] == ("safe", "unsafe")
    assert len(set(chosen.outputs)) == outputs


@pytest.mark.parametrize(("role", "stage"), [("user", "input"), ("assistant", "output")])
def test_the_last_message_decides_the_stage(role: Role, stage: Stage) -> None:
    assert stage_of([user("x"), Message(role=role, content="y")]) == stage


@pytest.mark.parametrize("role", ["system", "tool"])
def test_other_roles_are_not_judged(role: Role) -> None:
    with pytest.raises(MessageError, match=role) as caught:
        stage_of([Message(role=role, content="my secret")])

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("id", get_args(TemplateId))
def test_a_conversation_that_cannot_be_judged_is_refused(id: TemplateId) -> None:
    with pytest.raises(MessageError, match="empty"):
        template(id).render([])
    with pytest.raises(MessageError, match="role 'tool'"):
        template(id).render([Message(role="tool", content="x")])


hostile = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>"),
                *("<s>", "</s>", "<user>", "<assistant>", "＜user＞", "<us", "er>"),
                *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
                *("\nUser:", "\n\nAgent: ", "User :", "\r\n\tAgent:", "\n", "\r", "  "),
                *("<END CONVERSATION>", "<begin conversation>", "<END UNSAFE CONTENT CATEGORIES>"),
                *("<", "\u200b", "\ud800", "assistant\n", "output verdict\n", "safe", "unsafe\nS1"),
            ]
        ),
    ),
    max_size=10,
).map("".join)
conversations = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "assistant"]), content=hostile),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(
    ("name", "id"),
    [("tiny", "compact"), ("tiny-encoder", "segments"), ("tiny-llama-guard", "llama-guard-3")],
)
@given(conversation=conversations)
def test_special_ids_stand_where_the_template_put_them(
    name: str, id: TemplateId, conversation: list[Message]
) -> None:
    tokenizer = tokenizer_of(name)
    pieces = template(id).render(conversation)
    special = {
        token: tokenizer.encode([Special(token)])[0]
        for token in {piece.token for piece in pieces if isinstance(piece, Special)}
    }

    expected: list[int] = []
    position = 0
    places: list[int] = []
    for piece in pieces:
        if isinstance(piece, Special):
            places.append(position)
            expected.append(special[piece.token])
        position += len(tokenizer.encode([piece]))
    ids = tokenizer.encode(pieces)

    assert [index for index, token in enumerate(ids) if token in special.values()] == places
    assert [ids[place] for place in places] == expected


@given(conversation=conversations)
def test_no_message_forges_a_turn_or_fence(conversation: list[Message]) -> None:
    text = LlamaGuardTemplate().text(conversation)
    for token in ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"):
        text = text.replace(token, "")

    turns = re.findall(r"^[^\S\n]*(User|Agent)[^\S\n]*:", text, re.MULTILINE)
    fences = re.findall(r"<(BEGIN|END) (CONVERSATION|UNSAFE CONTENT CATEGORIES)>", text, re.I)

    assert turns == ["User" if turn.role == "user" else "Agent" for turn in conversation]
    assert len(fences) == 4


@given(content=st.text(st.characters(codec="utf-8", exclude_characters="<:"), max_size=80))
def test_ordinary_text_stays_as_it_is(content: str) -> None:
    assert f"User: {content.strip()}\n\n<END" in LlamaGuardTemplate().text([user(content)])
    assert Text(content) in CompactTemplate().render([user(content)])
    assert Text(content) in SegmentsTemplate().render([user(content)])


@pytest.mark.parametrize("id", get_args(TemplateId))
def test_system_messages_are_not_rendered(id: TemplateId) -> None:
    chosen = template(id)
    asked = Message(role="user", content="hello")
    app = Message(role="system", content="You sell shoes.")
    assert chosen.render([app, asked]) == chosen.render([asked])
