"""However a stream is cut into ASGI messages, the same leaves, and nothing before its verdict."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise

from guardrail_sdk_asgi._framing import Kind, Piece, splitter
from guardrail_sdk_asgi._types import Event
from harness import BAD, SENTENCE, Answered, Client, Says, chunk, guarded
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_sdk import CheckEvent, CheckResult, Guard, Hooks
from guardrail_sdk.testing import FakeModel

_words = st.sampled_from(
    ["soup ", "für ", "鍋. ", "🥕", "bo", "mb", "a bomb", "\u2028", SENTENCE, SENTENCE[:60]]
)
_line_ends = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def events(draw: st.DrawFn) -> str:
    """One event: of an OpenAI chunk, perhaps over several lines of data, or without text."""
    end = draw(_line_ends)
    payload = chunk(draw(_words))
    lines = draw(
        st.sampled_from(
            [
                [f"data: {payload}"],
                [f"data:{payload}"],
                ["event: x", f"data: {payload}", ": a comment", "id: 1"],
                [f"data: {payload[:12]}", f"data: {payload[12:]}"],
                [": ping"],
                ["data: [DONE]"],
                [],
            ]
        )
    )
    return "".join(line + end for line in [*lines, ""])


_bodies = st.lists(events(), max_size=12).map("".join).map(str.encode)


@st.composite
def cut(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> list[bytes]:
    body = draw(bodies)
    places = draw(st.lists(st.integers(0, len(body)), max_size=20))
    return [body[a:b] for a, b in pairwise([0, *sorted(places), len(body)])]


def text_of(body: bytes) -> str:
    """Return what a client reads in a body of whole events: written apart from the adapter."""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    said = ""
    for event in text.split("\n\n"):
        data = "\n".join(re.findall(r"^data: ?(.*)$", event.replace("\u2028", "\\u2028"), re.M))
        if data.startswith("{"):
            parsed = json.loads(data)
            said += parsed["choices"][0]["delta"]["content"] if "choices" in parsed else ""
    return said


def relayed(portions: list[bytes], mode_unsafe: list[str]) -> Answered:
    """Return what left, having seen that each byte was covered by a verdict before."""
    covered = 0

    def note(event: CheckEvent, result: CheckResult) -> None:
        nonlocal covered
        assert result.verdict is not None
        if not result.blocked:
            covered = max(covered, result.verdict.span.end)

    left = b""

    async def on_send(message: Event) -> None:
        nonlocal left
        portion = message.get("body", b"")
        assert isinstance(portion, bytes)
        if not portion.startswith((b"event: error", b'{"error')):
            left += portion
            assert len(text_of(left)) <= covered

    guard = Guard(model=FakeModel(mode_unsafe), hooks=Hooks(after_output=note))
    return asyncio.run(Client(on_send=on_send).ask(guarded(Says(portions), guard)))


@settings(max_examples=60, deadline=None)
@given(cut(_bodies))
def test_what_is_allowed_leaves_byte_by_byte_as_it_came(portions: list[bytes]) -> None:
    answered = relayed(portions, [])
    assert answered.body == b"".join(portions)
    assert answered.complete


@settings(max_examples=60, deadline=None)
@given(cut(_bodies))
def test_where_it_is_cut_makes_no_difference(portions: list[bytes]) -> None:
    body = b"".join(portions)
    whole, parts = relayed([body], [BAD]), relayed(portions, [BAD])
    assert parts.body == whole.body
    assert parts.status == whole.status
    unsafe = BAD in text_of(body)
    assert (b"guardrail_blocked" in whole.body) is unsafe
    if unsafe:
        released = whole.body.partition(b"event: error")[0].partition(b'{"error')[0]
        assert body.startswith(released)
        assert BAD not in text_of(released)


def test_cut_at_every_single_byte() -> None:
    body = f"\ufeffdata: {chunk('für 🥕')}\r\n\r\n: ping\r\rdata: {chunk(SENTENCE)}\n\n".encode()
    assert relayed([bytes([byte]) for byte in body], []).body == body


def pieces(kind: Kind, portions: list[bytes]) -> list[Piece]:
    split = splitter(kind)
    return [
        *(piece for portion in portions for piece in split.feed(portion)),
        *split.finish(),
    ]


@given(cut(st.text(alphabet="dat: a\n\r{}🥕é\ufeff", max_size=60).map(str.encode)))
def test_pieces_of_events_and_lines_do_not_depend_on_the_cuts(portions: list[bytes]) -> None:
    body = b"".join(portions)
    for kind in (Kind.EVENTS, Kind.LINES):
        found = pieces(kind, portions)
        assert found == pieces(kind, [body])
        assert b"".join(piece.raw for piece in found) == body
    text = pieces(Kind.TEXT, portions)
    assert b"".join(piece.raw for piece in text) == body
    assert "".join(piece.payload for piece in text) == body.decode()


def test_events_are_read_as_the_standard_says() -> None:
    body = (
        "\ufeffdata: a\ndata\ndata:  b\n\n"
        "event: e\nid:1\nretry: 9\ndata:c\n\n"
        ": comment\n\n\u2028data: no field\n\n"
    ).encode()
    read = [(piece.payload, piece.aside, piece.kept) for piece in pieces(Kind.EVENTS, [body])]
    assert read == [
        ("a\n\n b", "", ""),
        ("c", "", "event: e\nid:1\nretry: 9\n"),
        ("", "", ""),
        ("", "\u2028data: no field", ""),
    ]
