"""The contract of ASGI, as types, and its headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import cast

Scope = MutableMapping[str, object]
Event = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def headers_of(holder: Scope | Event) -> Headers:
    """Return the headers of a request's scope or of the start of a response."""
    found = cast("Iterable[tuple[bytes, bytes]]", holder.get("headers") or ())
    return [(bytes(name), bytes(value)) for name, value in found]


def without(headers: Headers, *names: bytes) -> Headers:
    """Return `headers` without those called one of `names`, which are in lower case."""
    return [(name, value) for name, value in headers if name.lower() not in names]


def values(headers: Headers, name: bytes) -> list[str]:
    """Return every value of the header `name`, in lower case."""
    found = [value for key, value in headers if key.lower() == name]
    return [value.decode("latin-1").strip().lower() for value in found]


def content_length(headers: Headers) -> int | None:
    """Return the length that is announced, in bytes; None if none is, or it isn't a number."""
    found = values(headers, b"content-length")
    return int(found[0]) if found and found[0].isdecimal() and found[0].isascii() else None


def media_types(headers: Headers) -> list[tuple[str, str]]:
    """Return each content type that is announced, as its media type and its charset, or ''."""
    return [_media_type(value) for value in values(headers, b"content-type")]


def _media_type(value: str) -> tuple[str, str]:
    media, *parameters = (part.strip() for part in value.split(";"))
    named = (parameter.partition("=") for parameter in parameters)
    charsets = [value.strip().strip('"') for name, _, value in named if name.strip() == "charset"]
    return media, charsets[0] if charsets else ""
