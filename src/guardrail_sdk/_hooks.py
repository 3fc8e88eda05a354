"""The user's own functions around each check: to log it, or to make its decision stricter."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from guardrail_sdk._errors import ConfigError
from guardrail_sdk._types import Action, CheckResult, Conversation, Decision, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckEvent:
    """A check that is about to happen or has happened."""

    stage: Stage
    conversation: Conversation
    """What the model reads; the last message is judged. Its text is secret: don't log it."""


BeforeHook = Callable[[CheckEvent], Awaitable[None] | None]
"""Called before the model judges. What it raises stops the check and reaches the caller."""

AfterHook = Callable[[CheckEvent, CheckResult], Awaitable[Decision | None] | Decision | None]
"""Called with the outcome; returns None to keep it, or a decision that is at least as strict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions that a guard calls around its checks; each may be sync or async.

    An async hook needs an async check: `check_sync`, and `wrap` on a sync function, refuse it.
    A stream is checked window by window, so its output hooks are called once per window.
    An exception in a hook propagates: nothing is let through.
    """

    before_input: BeforeHook | None = None
    after_input: AfterHook | None = None
    before_output: BeforeHook | None = None
    after_output: AfterHook | None = None

    def before(self, stage: Stage) -> BeforeHook | None:
        """Return the hook that runs before a check of `stage`."""
        return self.before_input if stage == "input" else self.before_output

    def after(self, stage: Stage) -> AfterHook | None:
        """Return the hook that runs after a check of `stage`."""
        return self.after_input if stage == "input" else self.after_output

    def require_sync(self) -> None:
        """Return if no hook is known to be async.

        Raises:
            ConfigError: If one is; names it.
        """
        for name in ("before_input", "after_input", "before_output", "after_output"):
            hook: object = getattr(self, name)
            call: object = getattr(type(hook), "__call__", None)  # noqa: B004 - read, not tested
            if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(call):
                raise ConfigError(async_hook(name))


def async_hook(name: str) -> str:
    """Return what to say when the hook `name` is async and the check is not."""
    return (
        f"The hook {name} is async, but this check is sync: make the hook a plain function, or use "
        "`await guard.check(...)` and wrap an async function."
    )


def stricter(decision: Decision, change: object, name: str) -> Decision:
    """Return the decision that stands after the hook `name` returned `change`.

    Raises:
        ConfigError: If `change` is neither None nor a decision, or a milder one.
    """
    if change is None:
        return decision
    if not isinstance(change, Decision):
        raise ConfigError(
            f"The hook {name} returned {type(change).__name__}: return a Decision or None."
        )
    try:
        action = Action(change.action)  # from its name, too: `.blocked` compares by identity
    except ValueError:
        raise ConfigError(f"The hook {name} returned a Decision of no known Action.") from None
    if action.severity < decision.action.severity:
        raise ConfigError(
            f"The hook {name} returned {action} where the policy says {decision.action}: a hook "
            "may only be stricter. Change the policy to be milder."
        )
    return replace(change, action=action)
