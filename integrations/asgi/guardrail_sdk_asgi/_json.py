"""Reads JSON as every parser would, and finds and replaces what is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import cast

from guardrail_sdk import ConfigError, MessageError

Steps = tuple[str, ...]


def parse(text: str) -> object:
    """Return the JSON value of `text`.

    Raises:
        MessageError: If parsers differ in what it means: a name stands twice in an object, a
            number is too long, or it is nested too deeply.
        JSONDecodeError: If it isn't JSON. The error holds the text.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        raise MessageError("The JSON is too deep, or a number in it too long.") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MessageError(
            "A name stands twice in a JSON object, and parsers differ in which counts."
        )
    return found


def strings(value: object) -> Iterator[str]:
    """Yield every string in a JSON value, the names in its objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in cast("dict[str, object]", value).items():
            yield name
            yield from strings(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from strings(item)


def pointer(text: str) -> Steps:
    """Return the steps of a JSON pointer (RFC 6901), or of the name of a top-level field.

    Raises:
        ConfigError: If it points at the whole value or is escaped wrongly.
    """
    steps = text.split("/")[1:] if text.startswith("/") else [text]
    if not text or any(re.search("~(?![01])", step) for step in steps if text.startswith("/")):
        raise ConfigError(f"{text!r} is no field: use a name or a JSON pointer, such as /a/b/0.")
    if not text.startswith("/"):
        return (text,)
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)


def found(value: object, steps: Steps) -> list[object]:
    """Return what `steps` lead to in a JSON value, in a list; an empty one if it isn't there."""
    for step in steps:
        if isinstance(value, dict):
            inner = cast("dict[str, object]", value)
            if step not in inner:
                return []
            value = inner[step]
        elif isinstance(value, list):
            items = cast("list[object]", value)
            if not re.fullmatch("0|[1-9][0-9]{0,8}", step) or int(step) >= len(items):
                return []
            value = items[int(step)]
        else:
            return []
    return [value]


def replaced(value: object, steps: Steps, item: object) -> object:
    """Return a copy of a JSON value with what `steps` lead to, which is there, replaced."""
    if not steps:
        return item
    step, *rest = steps
    if isinstance(value, dict):
        inner = cast("dict[str, object]", value)
        return {**inner, step: replaced(inner[step], tuple(rest), item)}
    items = list(cast("list[object]", value))
    items[int(step)] = replaced(items[int(step)], tuple(rest), item)
    return items
