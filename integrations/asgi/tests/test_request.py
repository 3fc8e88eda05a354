"""What a client sends: which requests are guarded, how they are read, and what the app sees."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence

import pytest
from guardrail_sdk_asgi import GuardedRoute, GuardMiddleware
from guardrail_sdk_asgi._types import Event, Receive, Scope, Send
from harness import BAD, Client, Says, ask, asking, guarded, sse

from guardrail_sdk import Action, Category, CategoryRule, ConfigError, Guard, Message, Policy
from guardrail_sdk.testing import FakeModel

JSON = ("content-type", "application/json")


@pytest.mark.parametrize(
    ("path", "asked", "root", "covered"),
    [
        ("/chat", "/chat", "", True),
        ("/chat", "/chat/", "", True),
        ("/chat", "//chat", "", True),
        ("/chat", "/chat/more", "", False),
        ("/chat", "/chats", "", False),
        ("/chat", "/api/chat", "/api", True),
        ("/chat", "/chat", "/api", True),
        ("/api/chat", "/api/chat", "/api", True),
        ("/chat", "/apichat", "/api", False),
        ("/v1/*", "/v1/chat/completions", "", True),
        ("/v1/*", "/v1", "", True),
        ("/v1/*", "/v10", "", False),
        ("/*", "/", "", True),
    ],
)
def test_which_paths_are_guarded(path: str, asked: str, root: str, covered: bool) -> None:
    app = Says([sse("Soup.")])
    client = Client(body=asking(prompt=BAD), path=asked, scope={"root_path": root})
    assert (ask(guarded(app, path=path), client).status == 400) is covered
    assert len(app.bodies) == (not covered)


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "post"])
def test_every_method_is_guarded_unless_some_are_named(method: str) -> None:
    client = Client(body=asking(prompt=BAD), method=method)
    assert ask(guarded(Says([sse("Soup.")])), client).status == 400
    named = guarded(Says([sse("Soup.")]), methods=["POST"])
    assert (ask(named, client).status == 400) is (method == "post")


@pytest.mark.parametrize("path", ["chat", "/chat/{id}", "/a*", "/*/b", "", "/chat?x"])
def test_a_path_that_would_never_fit_is_an_error(path: str) -> None:
    with pytest.raises(ConfigError, match="can't be guarded"):
        GuardedRoute(path=path)


def test_other_mistakes_are_errors_at_once() -> None:
    guard = Guard(model=FakeModel())
    with pytest.raises(ConfigError, match="No route"):
        GuardMiddleware(Says(), guard, [])
    with pytest.raises(ConfigError, match="methods"):
        GuardedRoute(path="/chat", methods="POST")
    wrong: list[str | list[str]] = ["", [], "/a~2"]
    for where in wrong:
        with pytest.raises(ConfigError, match="field"):
            GuardedRoute(path="/chat", messages=where)
    flagging = Guard(model=FakeModel(), policy=Policy(stream="flag"))
    with pytest.raises(ConfigError, match="flag"):
        GuardMiddleware(Says(), flagging, [GuardedRoute(path="/chat")])


def test_the_app_reads_the_body_as_it_came_and_then_a_disconnect() -> None:
    app = Says([sse("Soup.")])
    body = b'{ "prompt":\n"What is f\\u00fcr dinner?" }'
    portions = [body[:5], b"", body[5:20], body[20:]]

    async def run() -> Event:
        await Client(body=portions).ask(guarded(app))
        assert app.receive is not None
        return await app.receive()

    assert asyncio.run(run()) == {"type": "http.disconnect"}
    assert app.bodies == [body]


def test_a_blocked_input_never_reaches_the_app() -> None:
    app = Says([sse("Soup.")])
    answered = ask(guarded(app), Client(body=asking(prompt=f"A {BAD}, secretword!")))
    assert answered.status == 400
    assert answered.headers["content-length"] == str(len(answered.body))
    assert answered.error["type"] == "guardrail_blocked"
    assert answered.error["stage"] == "input"
    assert answered.error["category"] == "S2"
    assert "S2 Non-Violent Crimes" in str(answered.error["message"])
    assert b"secretword" not in answered.body
    assert not app.scopes


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        (None, {"messages": chat(("user", "Hi"), ("user", BAD))}),
        (None, {"messages": chat(("system", BAD), ("user", "Hi"))}),
        (None, {"messages": chat(("developer", BAD), ("user", "Hi"))}),
        (None, {"messages": chat(("user", "Hi"), ("assistant", "Hi"), ("tool", BAD))}),
        (None, {"input": BAD, "messages": None}),
        (None, BAD),
        ("question", {"question": BAD, "prompt": "Hi"}),
        ("/a~1b/0/q", {"a/b": [{"q": BAD}]}),
        (["question", "history"], {"question": BAD, "history": chat(("assistant", "Hi"))}),
        (["question", "history"], {"history": chat(("user", BAD))}),
        (["a", "b"], {"a": BAD, "b": "Hi"}),
        (lambda body: body["x"].upper(), {"x": BAD}),
    ],
)
def test_where_the_messages_are(messages: object, body: object) -> None:
    app = Says([sse("Soup.")])
    text = json.dumps(body)
    middleware = guarded(app, messages=messages)
    assert ask(middleware, Client(body=text.encode())).error["type"] == "guardrail_blocked"
    assert ask(middleware, Client(body=text.replace(BAD, "soup").encode())).status == 200
    assert app.bodies == [text.replace(BAD, "soup").encode()]


def test_a_function_may_trust_system_messages() -> None:
    def read(body: object) -> Sequence[Message]:
        return [Message(role="system", content=BAD), Message(role="user", content="Hi")]

    assert ask(guarded(Says([sse("Soup.")]), messages=read)).status == 200


@pytest.mark.parametrize(
    ("messages", "body", "problem"),
    [
        (None, b"", "not JSON"),
        (None, b"{'prompt': 'Hi'}", "not JSON"),
        (None, b'{"question": "Hi"}', "0 of the fields"),
        (None, b'{"prompt": "Hi", "input": "Hi"}', "2 of the fields"),
        (None, b'{"prompt": "bomb", "prompt": "Hi"}', "stands twice"),
        (None, b'{"prompt": "Hi", "x": {"a": 1, "a": 1}}', "stands twice"),
        (None, b"[" * 100_000, "too deep"),
        (None, b'{"prompt": "Hi", "x": ' + b"1" * 5000 + b"}", "too long"),
        (None, '{"prompt": "Hi"}'.encode("utf-16"), "not UTF-8"),
        (None, b'{"prompt": "\xff"}', "not UTF-8"),
        (None, b'{"messages": []}', "empty"),
        (None, b'{"messages": [{"role": "wizard", "content": "Hi"}]}', "no role"),
        (None, b'{"messages": [{"role": "assistant", "content": "Hi"}]}', "no message after"),
        ("question", b'{"prompt": "Hi"}', "none of the fields"),
        ("/a/b", b'{"a": "Hi"}', "none of the fields"),
        ("/a/9", b'{"a": ["Hi"]}', "none of the fields"),
        (lambda body: {}[body["prompt"]], b'{"prompt": "Hi"}', "KeyError"),
    ],
)
def test_what_cannot_be_read_is_refused(messages: object, body: bytes, problem: str) -> None:
    app = Says([sse("Soup.")])
    answered = ask(guarded(app, messages=messages), Client(body=body))
    assert answered.status == 400
    assert answered.error["type"] == "guardrail_unreadable"
    assert problem in str(answered.error["message"])
    assert not app.scopes


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("content-type", "application/x-www-form-urlencoded")],
        [("content-type", "multipart/form-data; boundary=x")],
        [("content-type", "text/plain")],
        [JSON, ("Content-Type", "application/x-www-form-urlencoded")],
        [("content-type", "application/json; charset=utf-16")],
        [JSON, ("content-encoding", "gzip")],
    ],
)
def test_what_another_reader_may_read_otherwise_is_refused(headers: list[tuple[str, str]]) -> None:
    app = Says([sse("Soup.")])
    assert ask(guarded(app), Client(headers=headers)).status == 415
    assert not app.scopes


@pytest.mark.parametrize(
    "media", ["application/json", 'Application/JSON; charset="UTF-8"', "application/ld+json"]
)
def test_json_by_any_name_is_read(media: str) -> None:
    client = Client(headers=[("content-type", media)])
    assert ask(guarded(Says([sse("Soup.")])), client).status == 200


def test_a_large_request_is_refused() -> None:
    app = Says([sse("Soup.")])
    body = asking(prompt="x" * 100)
    guard = Guard(model=FakeModel())
    for limit, status in ((len(body), 200), (len(body) - 1, 413)):
        middleware = GuardMiddleware(
            app, guard, [GuardedRoute(path="/chat")], max_request_bytes=limit
        )
        told = Client(body=body, headers=[JSON, ("content-length", str(len(body)))])
        assert ask(middleware, told).status == status
        # In portions, without a length, it isn't read to its end.
        assert ask(middleware, Client(body=[body[:60], body[60:]])).status == status
    assert len(app.bodies) == 2


def test_no_extension_or_header_leads_around_the_guard() -> None:
    app = Says([sse("Soup.")])
    names = ["tls", "http.response.pathsend", "http.response.zerocopysend", "http.response.push"]
    names += ["http.response.trailers", "http.response.early_hint", "http.response.debug"]
    scope: dict[str, object] = {"extensions": {name: {} for name in names}}
    headers = [JSON, ("Accept-Encoding", "gzip"), ("range", "bytes=0-9"), ("if-range", "x")]
    ask(guarded(app), Client(scope=scope, headers=[*headers, ("x-kept", "1")]))
    (seen,) = app.scopes
    assert seen["extensions"] == {"tls": {}}
    assert seen["headers"] == [(b"content-type", b"application/json"), (b"x-kept", b"1")]
    assert scope["extensions"] == {name: {} for name in names}


@pytest.mark.parametrize(
    ("messages", "body", "redacted"),
    [
        (None, {"prompt": BAD, "n": 1}, {"prompt": "@", "n": 1}),
        (
            None,
            {"messages": chat(("user", "Hi"), ("user", BAD))},
            {"messages": chat(("user", "Hi"), ("user", "@"))},
        ),
        ("/a/1", {"a": ["x", BAD]}, {"a": ["x", "@"]}),
        (
            ["q", "history"],
            {"q": BAD, "history": chat(("user", "Hi"))},
            {"q": "@", "history": chat(("user", "Hi"))},
        ),
        (None, BAD, "@"),
    ],
)
def test_a_redacted_request(messages: object, body: object, redacted: object) -> None:
    rule = CategoryRule(id=Category.S2, action=Action.REDACT)
    guard = Guard(model=FakeModel([BAD]), policy=Policy(categories=(rule,)))
    app = Says([sse("Soup.")])
    text = json.dumps(body).encode()
    client = Client(body=text, headers=[JSON, ("content-length", str(len(text)))])
    assert ask(guarded(app, guard, messages=messages), client).status == 200
    expected = json.dumps(redacted).replace("@", "[redacted by guardrail]").encode()
    assert app.bodies == [expected]
    headers = app.scopes[0]["headers"]
    assert isinstance(headers, list)
    assert (b"content-length", str(len(expected)).encode()) in headers


def test_a_request_that_only_a_function_reads_is_not_redacted() -> None:
    rule = CategoryRule(id=Category.S2, action=Action.REDACT)
    guard = Guard(model=FakeModel([BAD]), policy=Policy(categories=(rule,)))
    app = Says([sse("Soup.")])
    middleware = guarded(app, guard, messages=lambda body: BAD)
    answered = ask(middleware)
    assert answered.status == 400
    assert re.search("redacts the request", str(answered.error["message"]))
    assert not app.scopes


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_scopes_pass(kind: str) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Event:
        return {"type": f"{kind}.startup"}

    async def send(message: Event) -> None:
        raise AssertionError

    scope: Scope = {"type": kind, "path": "/other"}
    asyncio.run(guarded(app)(scope, receive, send))
    assert seen == [(scope, receive, send)]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_websocket_to_a_guarded_path_is_refused_unless_allowed(allowed: bool) -> None:
    seen: list[Event] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Event:
        return {"type": "websocket.connect"}

    async def send(message: Event) -> None:
        seen.append(message)

    middleware = guarded(app, websocket=allowed)
    asyncio.run(middleware({"type": "websocket", "path": "/chat"}, receive, send))
    refused: Event = {"type": "websocket.close", "code": 1008}
    assert seen == [{"type": "websocket.accept"} if allowed else refused]


def test_a_protocol_that_is_not_known_is_refused_on_guarded_paths() -> None:
    client = Client(scope={"type": "webtransport"})
    with pytest.raises(ConfigError, match="webtransport"):
        ask(guarded(Says()), client)
