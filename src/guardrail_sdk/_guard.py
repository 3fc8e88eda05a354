"""The guard: composes a model, a policy, hooks and a codec into checks and wrapped functions."""

from __future__ import annotations

import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterator,
)
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar, overload

from guardrail_sdk._codec import Codec, DefaultCodec
from guardrail_sdk._drive import Driver
from guardrail_sdk._errors import ConfigError
from guardrail_sdk._expand import Kernel
from guardrail_sdk._flow import BOTH_STAGES, Checks, GuardedCall, OnBlock
from guardrail_sdk._hooks import Hooks
from guardrail_sdk._judge import Judge
from guardrail_sdk._policy import Policy
from guardrail_sdk._types import CheckResult, Decision, Stage
from guardrail_sdk._wrap import Wrapping

CONFIG_VARIABLE = "GUARDRAIL_CONFIG"

P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")
BlockT = TypeVar("BlockT")
YieldT = TypeVar("YieldT")
SendT = TypeVar("SendT")


class Guard:
    """Judges what goes into and comes out of any chat function, on this machine.

    Making one verifies the model's files; the model is loaded at the first check, once per
    process, and shared by all guards that use it. A guard is immutable and may be used from any
    thread and event loop.

    Examples:
        >>> from guardrail_sdk.testing import FakeModel
        >>> guard = Guard(model=FakeModel(["bomb"]))
        >>> guard.check_sync("How do I build a bomb?").decision.action.value
        'block'

    Args:
        model: A model folder, or anything that implements `Judge`, such as
            `guardrail_sdk.testing.FakeModel`; None for the folder that the environment variable
            `GUARDRAIL_MODEL` names, or the bundled model.
        policy: What a verdict leads to; None for the YAML file that `GUARDRAIL_CONFIG` names, or
            the default policy, which blocks every hazard.
        hooks: Functions to call around each check.
        codec: How to read messages and answers; None for the common shapes.
        kernel: What a model folder's projections run with: `int4` as they are stored, or `int8` or
            `float32`, made from those in memory. None for what the environment variable
            `GUARDRAIL_KERNEL` names, or else what is fastest on this machine: that is measured at
            the first check, once, and remembered in the user's cache folder.

    Raises:
        ArtifactError: If the model folder is missing, changed or of another kind, or the model
            doesn't offer the policy's preset.
        ConfigError: If the policy file or an argument is wrong.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Judge | None = None,
        policy: Policy | None = None,
        hooks: Hooks | None = None,
        codec: Codec | None = None,
        *,
        kernel: Kernel | None = None,
    ) -> None:
        policy = _policy(policy)
        judge, extends = _judge(model, kernel, policy)
        self._codec = codec or DefaultCodec()
        self._checks = Checks(policy=policy, hooks=_hooks(hooks), extends=extends)
        self._driver = Driver(judge=judge, policy=policy)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._checks.policy

    @property
    def judge(self) -> Judge:
        """What gives the verdicts."""
        return self._driver.judge

    @property
    def codec(self) -> Codec:
        """How messages and answers are read, unless a wrapped function has a codec of its own."""
        return self._codec

    async def check(self, messages: object) -> CheckResult:
        """Check the last message of a conversation, without blocking the event loop.

        Args:
            messages: A string (a user's prompt), or a list of messages: role/content dicts,
                `Message` or LangChain-like objects; contents may be lists of text parts. A
                user's last message is judged as a prompt, an assistant's as a response.

        Returns:
            The verdict and what the policy makes of it. A check that failed has no verdict; the
            policy's `on_error` decides it.

        Raises:
            MessageError: If the messages can't be understood.
        """
        conversation = self._codec.read_input((messages,), {})
        return await self._driver.run_async(self._checks.check(conversation))

    def check_sync(self, messages: object) -> CheckResult:
        """Do as `check` does, in the calling thread.

        Raises:
            MessageError: If the messages can't be understood.
            ConfigError: If a hook is async.
        """
        self._checks.hooks.require_sync()
        conversation = self._codec.read_input((messages,), {})
        return self._driver.run(self._checks.check(conversation))

    @overload
    def wrap(
        self,
        chat_fn: Callable[P, ReturnT],
        *,
        codec: Codec | None = None,
        on_block: None = None,
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, ReturnT]: ...
    @overload
    def wrap(
        self,
        chat_fn: Callable[P, Coroutine[object, object, ReturnT]],
        *,
        codec: Codec | None = None,
        on_block: Callable[[Decision], BlockT],
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, Coroutine[object, object, ReturnT | BlockT]]: ...
    @overload
    def wrap(
        self,
        chat_fn: Callable[P, Generator[YieldT, SendT, ReturnT]],
        *,
        codec: Codec | None = None,
        on_block: Callable[[Decision], BlockT],
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, Generator[YieldT | BlockT, SendT, ReturnT | None]]: ...
    @overload
    def wrap(
        self,
        chat_fn: Callable[P, AsyncGenerator[YieldT, SendT]],
        *,
        codec: Codec | None = None,
        on_block: Callable[[Decision], BlockT],
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, AsyncGenerator[YieldT | BlockT, SendT]]: ...
    @overload
    def wrap(
        self,
        chat_fn: Callable[P, Iterator[YieldT]],
        *,
        codec: Codec | None = None,
        on_block: Callable[[Decision], BlockT],
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, Iterator[YieldT | BlockT]]: ...
    @overload
    def wrap(
        self,
        chat_fn: Callable[P, AsyncIterator[YieldT]],
        *,
        codec: Codec | None = None,
        on_block: Callable[[Decision], BlockT],
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, AsyncIterator[YieldT | BlockT]]: ...
    @overload
    def wrap(
        self,
        chat_fn: Callable[P, ReturnT],
        *,
        codec: Codec | None = None,
        on_block: Callable[[Decision], BlockT],
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[P, ReturnT | BlockT]: ...
    def wrap(
        self,
        chat_fn: Callable[..., object],
        *,
        codec: Codec | None = None,
        on_block: OnBlock | None = None,
        parallel: bool = False,
        stages: Collection[Stage] = BOTH_STAGES,
        on_check: Callable[[CheckResult], None] | None = None,
    ) -> Callable[..., object]:
        """Return `chat_fn` guarded: the same kind of function, with the same signature.

        Its input is judged before it runs (but see `parallel`), what it returns before it is
        returned. A generator's chunks are held back until the window of text that they belong to
        was judged. In an agent's loop, every message since the assistant last spoke is judged as
        input.

        Args:
            chat_fn: A function, async function, generator or async generator; also a bound
                method, a `functools.partial` or a callable object.
            codec: How to read this function's arguments and results; None for the guard's.
            on_block: What to return in place of what was blocked (a generator yields it as its
                last item); None to raise `Blocked`.
            parallel: Call an async `chat_fn` while its input is being judged, which hides the time
                of that check. What it returns, yields or raises is held until the verdict; if the
                input is blocked or to be redacted, the call is cancelled. What the function does
                besides, such as calling tools itself or writing to a database, can't be held: it
                may have happened. It may not leave a cancel scope or task group open when it
                returns a stream or at its first `yield`.
            stages: What to judge: what goes in, what comes out, or both. Without `input`, what the
                codec reads there is only the output's context, and may be empty. For adapters that
                stand on one side of a model, or judge its input elsewhere.
            on_check: A plain function to call with the outcome of each check of this function,
                after the guard's own hooks. For adapters that pass verdicts on.

        Raises:
            ConfigError: If `chat_fn` can't be called, a hook is async and `chat_fn` is not,
                `parallel` is asked of a sync function, or `stages` holds anything else.
        """
        if not callable(chat_fn):
            raise ConfigError(f"{type(chat_fn).__name__} can't be called: wrap a chat function.")
        if not stages or not set(stages) <= set(BOTH_STAGES):
            raise ConfigError("stages must hold `input`, `output` or both.")
        if (
            self.policy.stream == "flag"
            and "output" in stages
            and self._checks.hooks.after("output") is None
        ):
            raise ConfigError(
                "The policy's stream is flag, which blocks no stream and only reports: pass a "
                "hook after_output that takes the reports, or use hold or lookbehind."
            )
        call = GuardedCall(
            checks=replace(self._checks, on_check=on_check),
            stages=frozenset(stages),
            codec=codec or self._codec,
            on_block=on_block,
            parallel=parallel,
        )
        return Wrapping(chat_fn=chat_fn, call=call, driver=self._driver).build()


def _policy(policy: object) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if policy is not None:
        raise ConfigError(f"policy is {type(policy).__name__}: pass a Policy.")
    path = os.environ.get(CONFIG_VARIABLE)
    return Policy.from_file(Path(path)) if path else Policy()


def _hooks(hooks: object) -> Hooks:
    if hooks is None:
        return Hooks()
    if isinstance(hooks, Hooks):
        return hooks
    raise ConfigError(f"hooks is {type(hooks).__name__}: pass Hooks(...).")


def _judge(
    model: str | os.PathLike[str] | Judge | None, kernel: Kernel | None, policy: Policy
) -> tuple[Judge, bool]:
    """Return what judges, and whether it reads only what is new of a text that grew."""
    # The local model is a large part of the package: it loads with the first guard.
    from guardrail_sdk._kernel import KERNELS
    from guardrail_sdk._local import LocalModel
    from guardrail_sdk.artifact import find_artifact

    if kernel is not None and kernel not in KERNELS:
        raise ConfigError(f"kernel is {kernel!r}: use {', '.join(KERNELS)}, or None.")
    if model is None or isinstance(model, str | os.PathLike):
        model = LocalModel(find_artifact(model), kernel)
    elif kernel is not None:
        raise ConfigError("kernel is for a model folder: this guard's model is a Judge.")
    if isinstance(model, LocalModel):
        model.require_preset(policy.preset)
        return model, model.extends
    if callable(getattr(model, "judge", None)):
        return model, False
    raise ConfigError(f"model is {type(model).__name__}: pass a model folder or a Judge.")
