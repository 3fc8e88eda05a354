"""What the app answers: how it is read, what leaves, and what becomes of what doesn't."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from threading import Event as ThreadEvent

import anyio
import anyio.lowlevel
import pytest
from guardrail_sdk_asgi import GuardedRoute, GuardMiddleware
from guardrail_sdk_asgi._types import Event, Receive, Scope, Send
from harness import BAD, SENTENCE, Answered, Client, Says, ask, chunk, guarded, sse

from guardrail_sdk import (
    Action,
    Blocked,
    Category,
    CategoryRule,
    CheckEvent,
    CheckResult,
    Guard,
    Hooks,
    Policy,
)
from guardrail_sdk.testing import FakeModel

LONG = SENTENCE * 2
REDACT = Policy(categories=(CategoryRule(id=Category.S2, action=Action.REDACT),))
LINES = "application/x-ndjson"


def data(*payloads: str) -> bytes:
    return "".join(f"data: {payload}\n\n" for payload in payloads).encode()


@pytest.mark.parametrize(
    ("media", "text", "body"),
    [
        ("application/json", None, b'{ "choices": [{"index":0,"message":{"content":"@"}}]}'),
        ("application/json", None, b'{"answer": {"parts": ["Hi", "@"]}}'),
        ("application/json", None, b'{"@": 1}'),
        ("application/json", None, b'["@"]'),
        ("application/json", None, b'"@"'),
        ("application/json", None, b'{"detail": [{"msg": "field required", "input": "@"}]}'),
        ("application/problem+json", None, b'{"title": "@"}'),
        ("application/json", None, b'{"answer": "\\u0062omb @"}'),
        ("application/json", "answer", b'{"id": "bomb-1", "answer": "@"}'),
        ("application/json", "/a/0/t", b'{"a": [{"t": {"x": "@"}}]}'),
        ("application/json", "answer", b'{"error": "@"}'),
        ("application/json", ["a", "b"], b'{"a": "Hi", "b": "@"}'),
        ("application/json", lambda body: body["x"], b'{"x": "@", "y": "bomb"}'),
        ("text/plain; charset=utf-8", None, b"Hi @"),
        ("text/markdown", None, b"**@**"),
        (LINES, None, b'"Hi"\n\n"@"\r\n'),
        (LINES, "t", b'{"t": "Hi"}\n{"t": "@"}'),
        (LINES, "t", b'{"t": "b"}\n{"t": "@"}'),
        ("text/event-stream", None, data(chunk("Hi"), chunk("@"), "[DONE]")),
        ("text/event-stream", None, data("Hi", "@")),
        ("text/event-stream", None, data('"@"')),
        ("text/event-stream", None, data('{"error": {"message": "@"}}')),
        ("text/event-stream", "delta", data('{"type": "x", "delta": "@"}')),
        ("text/event-stream", "delta", data('{"type": "@"}')),
        ("text/event-stream", lambda event: event.get("d", ""), data('{"d": "@", "x": "bomb"}')),
        ("text/event-stream", lambda event: event["chunk"], data(f'{{"chunk": {chunk("@")}}}')),
        ("text/event-stream", None, b"data: Hi\n@ no field\n\n"),
        ("text/event-stream", None, b"data: Hi\n\ndata: @"),
        ("text/event-stream", None, b"\xef\xbb\xbfdata:@\r\rdata\r\r"),
        ("text/event-stream", None, b"event: x\nid: 7\nretry: 5\n: bomb\ndata: Hi\ndata: @\n\n"),
    ],
)
def test_where_the_text_is(media: str, text: object, body: bytes) -> None:
    for said, fate in ((b"soup", 200), (BAD.encode(), 400)):
        body_said = body.replace(b"@", said).replace(b'"b"\n{"t": "bomb"', b'"bo"\n{"t": "mb"')
        if said == b"soup":
            body_said = body_said.replace(b"\\u0062omb", b"x")
        app = Says([body_said], media)
        answered = ask(guarded(app, text=text))
        assert answered.status == fate
        assert answered.complete
        if fate == 200:
            assert answered.body == body_said
        else:
            assert answered.error["type"] == "guardrail_blocked"
            assert answered.error["stage"] == "output"
            assert app.cancelled


@pytest.mark.parametrize(
    ("media", "body", "headers", "problem"),
    [
        ("text/event-stream", gzip.compress(sse("Hi")), [("Content-Encoding", "gzip")], "compress"),
        (None, b"Hi", [], "media type"),
        ("text/plain", b"Hi", [("content-type", "text/event-stream")], "media type"),
        ("text/html", b"<p>Hi", [], "none of JSON"),
        ("image/png", b"Hi", [], "none of JSON"),
        ("text/plain; charset=utf-16", b"H\0i\0", [], "UTF-8"),
        ("text/plain", b"Hi \xff", [], "UTF-8"),
        ("text/plain", b"Hi \xc3", [], "UTF-8"),
        ("application/json", b'"\xff"', [], "UTF-8"),
        ("application/json", b"{'a': 1}", [], "not JSON"),
        ("application/json", b'{"a": 1, "a": 2}', [], "stands twice"),
        ("application/json", b'{"content": [{"type": "image"}]}', [], "not text"),
        ("text/event-stream", data('{"t": "Hi"}'), [], "route's text"),
        ("text/event-stream", data('{"a": 1, "a": 2}'), [], "stands twice"),
        ("text/event-stream", b"data: \xff\n\n", [], "UTF-8"),
    ],
)
def test_what_cannot_be_judged_is_withheld(
    media: str | None,
    body: bytes,
    headers: Sequence[tuple[str, str]],
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Says([body], media, headers=headers)
    answered = ask(guarded(app))
    assert answered.status == 500
    assert answered.error["type"] == "guardrail_unreadable"
    assert app.cancelled
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert problem in record.getMessage()


@pytest.mark.parametrize("kind", ["http.response.pathsend", "http.response.trailers", "x"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_message_that_is_not_known_is_withheld(kind: str, begun: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": kind, "path": "/etc/hostname"})
        await anyio.sleep_forever()

    assert ask(guarded(app)).status == 500


@pytest.mark.parametrize("status", [204, 304, 307, 405])
def test_an_empty_response_passes_with_its_headers(status: int) -> None:
    headers = [("etag", '"x"'), ("content-length", "120"), ("location", "/chat")]
    model = FakeModel()
    middleware = guarded(Says([b"", b""], None, status, headers), Guard(model=model))
    answered = ask(middleware, Client(method="HEAD"))
    assert (answered.status, answered.headers, answered.body) == (status, dict(headers), b"")
    assert len(model.seen) == 1  # the request


def test_a_whole_body_keeps_its_headers() -> None:
    for media, body in (("application/json", b'{"answer": "Hi"}'), ("text/plain", b"Hi")):
        headers = [("ETag", '"x"'), ("content-length", str(len(body))), ("x-a", "1"), ("x-a", "2")]
        answered = ask(guarded(Says([body[:3], body[3:]], media, 203, headers)))
        assert answered.messages == [
            {
                "type": "http.response.start",
                "status": 203,
                "headers": [
                    (name.encode(), value.encode())
                    for name, value in [("content-type", media), *headers]
                ],
            },
            {"type": "http.response.body", "body": body, "more_body": False},
        ]


def test_a_stream_promises_no_length() -> None:
    body = sse("Hi")
    headers = [("content-length", str(len(body))), ("ETag", '"x"'), ("x-kept", "1")]
    answered = ask(guarded(Says([body], headers=headers)))
    assert answered.headers == {"content-type": "text/event-stream", "x-kept": "1"}
    assert answered.body == body


@pytest.mark.parametrize(
    ("media", "text", "body", "redacted"),
    [
        ("application/json", "t", b'{"t": "bomb", "n": 1}', b'{"t": "@", "n": 1}'),
        ("application/json", ["t", "u"], b'{"u": "bomb", "t": "x"}', b'{"u": "", "t": "@"}'),
        ("application/json", None, b'["bomb"]', b'"@"'),
        ("text/plain", None, b"A bomb", b"@"),
        (LINES, "t", b'{"t": "bo"}\n{"t": "mb"}\n', b'{"t": "@"}\n{"t": ""}\n'),
        ("text/event-stream", None, b"id: 1\ndata: A bomb\nx\n\n", b"id: 1\ndata: @\n\n"),
        ("text/event-stream", None, data('"bomb"', "[DONE]"), data('"@"', "[DONE]")),
        ("text/event-stream", None, sse("bo", "mb"), sse("@", "")),
    ],
)
def test_a_redacted_response(media: str, text: object, body: bytes, redacted: bytes) -> None:
    guard = Guard(model=FakeModel([BAD]), policy=REDACT)
    headers = [("content-length", str(len(body))), ("etag", '"x"')]
    answered = ask(guarded(Says([body], media, headers=headers), guard, text=text))
    assert answered.status == 200
    assert answered.body == redacted.replace(b"@", b"[redacted by guardrail]")
    assert "etag" not in answered.headers
    assert answered.headers.get("content-length", str(len(answered.body))) == str(
        len(answered.body)
    )


@pytest.mark.parametrize(
    ("text", "body"), [(None, b'{"name": "bomb"}'), ("t", b'{"x": "bomb"}'), (str, b'{"x":"bomb"}')]
)
def test_what_cannot_be_redacted_is_withheld(text: object, body: bytes) -> None:
    guard = Guard(model=FakeModel([BAD]), policy=REDACT)
    assert ask(guarded(Says([body], "application/json"), guard, text=text)).status == 500


def test_choices_that_are_interleaved_are_judged_each() -> None:
    choices = [(index, text) for letter in BAD for index, text in ((0, "x"), (1, letter))]
    body = data(
        *(json.dumps({"choices": [{"index": i, "delta": {"content": t}}]}) for i, t in choices)
    )
    answered = ask(guarded(Says([body])))
    assert answered.error["type"] == "guardrail_blocked"


def test_a_stream_that_has_begun_ends_in_an_error_event() -> None:
    app = Says([sse(LONG), sse("A "), sse("bo"), sse("mb"), *100 * [sse(SENTENCE)]])
    answered = ask(guarded(app))
    assert answered.status == 200
    assert answered.complete
    assert answered.body.startswith(sse(LONG) + b"event: error\ndata: {")
    assert answered.error["type"] == "guardrail_blocked"
    assert app.cancelled
    assert app.sent < 10


def test_lines_that_have_begun_end_in_an_error_line() -> None:
    first = json.dumps({"t": LONG}).encode() + b"\n"
    answered = ask(guarded(Says([first, b'{"t": "bomb"}\n'], LINES), text="t"))
    assert answered.body.startswith(first + b'{"error": ')
    assert answered.error["category"] == "S2"


def test_text_that_has_begun_breaks_off() -> None:
    app = Says([LONG.encode(), b"A bomb"], "text/plain")
    sent: list[Event] = []

    async def on_send(message: Event) -> None:
        sent.append(message)

    with pytest.raises(Blocked):
        ask(guarded(app), Client(on_send=on_send))
    assert b"".join(bytes(m.get("body", b"")) for m in sent) == LONG.encode()  # type: ignore[arg-type]
    assert sent[-1]["more_body"]
    assert app.cancelled


def test_what_cannot_be_judged_ends_a_stream_that_has_begun() -> None:
    answered = ask(guarded(Says([sse(LONG), data('{"t": "Hi"}')])))
    assert answered.body.startswith(sse(LONG) + b"event: error\n")
    assert answered.error["type"] == "guardrail_unreadable"


def test_a_failed_check_fails_closed() -> None:
    def fails(stage: str, text: str) -> float:
        if stage == "output":
            raise RuntimeError("secret")
        return 0.0

    answered = ask(guarded(Says([sse("Hi")]), Guard(model=FakeModel(fails))))
    assert answered.status == 400
    assert answered.error["category"] is None
    assert "secret" not in answered.body.decode()


def limited(app: Says, limit: int) -> Answered:
    guard = Guard(model=FakeModel([BAD]))
    routes = [GuardedRoute(path="/chat")]
    return ask(GuardMiddleware(app, guard, routes, max_response_bytes=limit))


def test_no_more_is_held_back_than_is_allowed() -> None:
    body = b'{"answer": "Hi"}'
    assert limited(Says([body[:4], body[4:]], "application/json"), len(body)).status == 200
    assert limited(Says([body[:4], body[4:]], "application/json"), len(body) - 1).status == 500
    # A stream may be longer than what is held of it at a time.
    assert limited(Says(100 * [sse(LONG)]), 2_000).body == 100 * sse(LONG)
    # But neither an event without an end nor comments behind a held text pile up.
    for portions in ([b"data: ", *1000 * [b"x"]], [sse("Hi"), *1000 * [b": ping\n\n"]]):
        app = Says(portions)
        assert limited(app, 500).status == 500
        assert app.sent < 500


def test_comments_pass_at_once_and_start_the_response() -> None:
    seen: list[Event] = []
    go = anyio.Event()

    async def on_send(message: Event) -> None:
        seen.append(message)
        go.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        with anyio.fail_after(10):
            await go.wait()
        await send({"type": "http.response.body", "body": sse("Hi")})

    assert ask(guarded(app), Client(on_send=on_send)).body == b": ping\n\n" + sse("Hi")


def test_the_app_sends_no_faster_than_the_client_takes() -> None:
    app = Says(50 * [sse(LONG)])
    ahead: list[int] = []
    bodies = 0

    async def on_send(message: Event) -> None:
        nonlocal bodies
        bodies += message["type"] == "http.response.body"
        for _ in range(20):  # whatever can run meanwhile does
            await anyio.lowlevel.checkpoint()
        ahead.append(app.sent - bodies)

    assert ask(guarded(app), Client(on_send=on_send)).body == 50 * sse(LONG)
    assert max(ahead) <= 1


def test_work_after_the_response_is_done_once_it_was_let_through() -> None:
    done: list[str] = []

    async def after() -> None:
        await anyio.lowlevel.checkpoint()
        done.append("stored")

    for word, stored in (("soup", ["stored"]), (BAD, ["stored"])):
        ask(guarded(Says([sse(word)], after=after)))
        assert done == stored


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_of_the_app_reaches_the_server_as_it_is(begun: bool) -> None:
    seen: list[Event] = []

    async def on_send(message: Event) -> None:
        seen.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": sse("A "), "more_body": True})
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ask(guarded(app), Client(on_send=on_send))
    assert seen == []


def test_an_app_that_ends_too_early_ends_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'"Hi"', "more_body": True})

    assert ask(guarded(app)).messages == []  # and the server complains


def test_what_a_hook_raises_reaches_the_server() -> None:
    def fail(event: CheckEvent, result: CheckResult) -> None:
        raise OSError("The disk is full.")

    for hooks in (Hooks(after_input=fail), Hooks(after_output=fail)):
        with pytest.raises(OSError, match="disk"):
            ask(guarded(Says([sse("Hi")]), Guard(model=FakeModel(), hooks=hooks)))


def test_what_a_hook_blocks_is_told_by_its_reason() -> None:
    def no(event: CheckEvent, result: CheckResult):
        return replace(result.decision, action=Action.BLOCK, reason="Not today.")

    guard = Guard(model=FakeModel(), hooks=Hooks(after_output=no))
    assert ask(guarded(Says([sse("Hi")]), guard)).error["message"] == "Not today."


def test_flag_lets_a_stream_pass_and_reports_but_blocks_what_is_whole() -> None:
    blocked: list[bool] = []

    def report(event: CheckEvent, result: CheckResult) -> None:
        blocked.append(result.blocked)

    guard = Guard(
        model=FakeModel([BAD]), policy=Policy(stream="flag"), hooks=Hooks(after_output=report)
    )
    assert ask(guarded(Says([sse(BAD)]), guard)).body == sse(BAD)
    assert ask(guarded(Says([b'"bomb"'], "application/json"), guard)).status == 400
    assert blocked == [True, True]


async def until_judging(model: FakeModel, checks: int) -> None:
    with anyio.fail_after(10):
        while len(model.seen) < checks:  # noqa: ASYNC110 - a thread notes it
            await anyio.sleep(0.001)


@pytest.mark.parametrize("stage", ["input", "output"])
def test_a_client_that_hangs_up_ends_the_check(stage: str) -> None:
    gate = ThreadEvent()
    if stage == "output":
        gate.set()
    model = FakeModel(gate=gate)
    app = Says([sse("Hi")])

    async def run() -> Answered:
        hang_up = anyio.Event()
        checks = 1

        async def leave() -> None:
            await until_judging(model, checks)
            hang_up.set()

        if stage == "output":
            checks = 2
            hooks = Hooks(after_input=lambda event, result: gate.clear())
            guard = Guard(model=model, hooks=hooks)
        else:
            guard = Guard(model=model)
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            with anyio.fail_after(10):
                return await Client(hang_up=hang_up).ask(guarded(app, guard))
        raise AssertionError

    assert asyncio.run(run()).messages == []
    assert bool(app.scopes) is (stage == "output")


@pytest.mark.parametrize(("version", "raised"), [("2.3", False), ("2.4", True)])
def test_the_app_learns_that_the_client_is_gone(version: str, raised: bool) -> None:
    learned: list[str] = []
    hang_up = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        hang_up.set()
        learned.append(str((await receive())["type"]))
        with anyio.CancelScope() as looks_in:  # as Starlette's Request.is_disconnected does
            looks_in.cancel()
            learned.append(str((await receive())["type"]))
        try:
            for _ in range(3):
                await send({"type": "http.response.body", "body": sse("Hi"), "more_body": True})
        except OSError:
            learned.append("OSError")

    scope: dict[str, object] = {"asgi": {"version": "3.0", "spec_version": version}}
    answered = ask(guarded(app), Client(hang_up=hang_up, scope=scope))
    assert answered.messages == []
    assert learned == ["http.disconnect", "http.disconnect", *(["OSError"] if raised else [])]


def test_a_server_that_raises_for_a_client_that_is_gone_ends_the_answer() -> None:
    async def on_send(message: Event) -> None:
        raise ConnectionResetError

    app = Says(100 * [sse(LONG)])
    client = Client(on_send=on_send, scope={"asgi": {"spec_version": "2.4"}})
    with pytest.raises(OSError, match="The client is gone"):
        ask(guarded(app), client)
    assert app.sent < 5


def test_a_client_that_leaves_before_its_body_is_there_asks_nothing() -> None:
    app = Says([sse("Hi")])

    async def receive() -> Event:
        return {"type": "http.disconnect"}

    async def send(message: Event) -> None:
        raise AssertionError

    scope: Scope = {"type": "http", "method": "POST", "path": "/chat"}
    scope["headers"] = [(b"content-type", b"application/json")]
    asyncio.run(guarded(app)(scope, receive, send))
    assert not app.scopes


def test_concurrent_requests_keep_apart() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        word = json.loads(bytes((await receive())["body"]))["prompt"]  # type: ignore[arg-type]
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in (word, LONG, word):
            await anyio.lowlevel.checkpoint()
            await send({"type": "http.response.body", "body": sse(part), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> list[Answered]:
        middleware = guarded(echo, Guard(model=FakeModel(["bad7"])))
        prompts = [json.dumps({"prompt": f"bad {n}"}).encode() for n in range(20)]
        return await asyncio.gather(*(Client(body=body).ask(middleware) for body in prompts))

    for number, answered in enumerate(asyncio.run(run())):
        assert answered.body == sse(f"bad {number}", LONG, f"bad {number}")


def test_it_runs_on_trio() -> None:
    app = Says([sse(LONG), sse(BAD)])
    answered = anyio.run(Client().ask, guarded(app), backend="trio")
    assert answered.body.startswith(sse(LONG) + b"event: error\n")
    assert app.cancelled
