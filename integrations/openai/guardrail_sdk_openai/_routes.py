"""Which requests are guarded, and how; which carry no chat and pass. All others are refused."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import unquote, urlsplit

from guardrail_sdk import ConfigError
from guardrail_sdk_openai._chat import ChatCompletions, StoredChatCompletion, TextCompletions
from guardrail_sdk_openai._endpoint import Endpoint, Prompt
from guardrail_sdk_openai._responses import Responses, StoredResponse

# `*` is one segment of a path.
GUARDED: Final[dict[str, Callable[[], Endpoint]]] = {
    "POST chat/completions": ChatCompletions,
    "GET chat/completions/*": StoredChatCompletion,
    "POST chat/completions/*": StoredChatCompletion,
    "POST completions": TextCompletions,
    "POST responses": Responses,
    "GET responses/*": StoredResponse,
    "POST responses/*/cancel": StoredResponse,
    "POST images/generations": Prompt,
    "POST images/edits": Prompt,
    "POST audio/speech": Prompt,
    "POST videos": Prompt,
    "POST videos/*/remix": Prompt,
}

# What holds no text that a model wrote. A trailing `**` is any number of segments.
PASSED: Final = (
    "DELETE chat/completions/*",
    "DELETE responses/*",
    "POST responses/input_tokens",
    "POST embeddings",
    "POST moderations",
    "GET models",
    "GET models/*",
    "DELETE models/*",
    "POST images/variations",
    "POST audio/transcriptions",  # what a user said: it is judged once it is part of a chat
    "POST audio/translations",
    "GET videos",
    "GET videos/*",
    "GET videos/*/content",
    "DELETE videos/*",
    "POST files",
    "GET files",
    "GET files/*",
    "DELETE files/*",
    "POST uploads/**",
    "POST vector_stores/**",
    "GET vector_stores/**",
    "DELETE vector_stores/**",
    "POST fine_tuning/jobs/**",
    "GET fine_tuning/jobs/**",
)


def endpoint_of(method: str, url: str, base: str) -> Endpoint | None:
    """Return what guards a request; None if it carries no chat.

    Args:
        method: The HTTP method.
        url: A path below the client's base URL, or a whole URL.
        base: The client's base URL.

    Raises:
        ConfigError: If the request can't be guarded, or isn't known.
    """
    segments = _segments(url, base)
    if segments is not None:
        segments = [method.upper(), *segments]
        for route, endpoint in GUARDED.items():
            if _matches(segments, route):
                return endpoint()
        if any(_matches(segments, route) for route in PASSED):
            return None
    raise ConfigError(
        f"A guarded client doesn't send {method.upper()} requests of this kind, since what they "
        "carry can't be judged: use the client that isn't guarded, and guard what you do with it. "
        "See the table of what is guarded."
    )


def _segments(url: str, base: str) -> list[str] | None:
    """Return the segments of a path below the base URL; None if they could mean another one."""
    parts, root = urlsplit(url), urlsplit(base)
    path = parts.path
    if parts.scheme or parts.netloc:
        folder = root.path.rstrip("/") + "/"
        if (parts.scheme, parts.netloc) != (root.scheme, root.netloc) or not path.startswith(
            folder
        ):
            return None
        path = path.removeprefix(folder)
    segments = path.strip("/").split("/")
    odd = any(unquote(segment) in ("", ".", "..") or "\\" in segment for segment in segments)
    return None if odd else segments


def _matches(segments: list[str], route: str) -> bool:
    pattern = route.replace(" ", "/").split("/")
    if pattern[-1] == "**":
        pattern.pop()
        segments = segments[: len(pattern)]
    return len(pattern) == len(segments) and all(map(fnmatchcase, segments, pattern))
