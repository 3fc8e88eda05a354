"""The checks behind a reply: they ride along beside it, so that its type stays as it was."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Final

from guardrail_sdk import CheckResult, ConfigError

_OF: Final[dict[int, Sequence[CheckResult]]] = {}


def verdicts(reply: object) -> tuple[CheckResult, ...]:
    """Return the outcome of each check that a reply of a guarded client went through, in order.

    Of a stream it is what was checked so far.

    Args:
        reply: What a guarded client returned: a reply, a raw response, or a stream (also one that
            a manager such as `chat.completions.stream` gave).

    Raises:
        ConfigError: If a guarded client didn't return it.
    """
    found = _OF.get(id(getattr(reply, "_raw_stream", reply)))
    if found is None:
        raise ConfigError(f"No guarded client returned this {type(reply).__name__}.")
    return tuple(found)


def attach(reply: object, checks: Sequence[CheckResult]) -> None:
    """Remember the checks of `reply` for as long as it lives; `checks` may still grow."""
    try:
        weakref.finalize(reply, _OF.pop, id(reply), None).atexit = False
    except TypeError:  # a string, or another value that nothing can be remembered of
        return
    _OF[id(reply)] = checks
