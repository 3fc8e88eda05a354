"""Checks: results, failures, deadlines, cancellation, hooks, configuration, and secrecy."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock, get_ident

import anyio
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from guardrail_sdk import (
    Action,
    ArtifactError,
    Blocked,
    Category,
    CategoryRule,
    CheckEvent,
    CheckResult,
    ConfigError,
    Decision,
    EngineError,
    Guard,
    Hooks,
    MessageError,
    Policy,
)
from guardrail_sdk._judge import Budget
from guardrail_sdk._types import Conversation, Verdict
from guardrail_sdk.artifact import Thresholds, open_artifact, write_manifest
from guardrail_sdk.testing import FakeModel

DATA = Path(__file__).parent / "data"
CANARY = "c4n4ry"


def decision(action: Action) -> Decision:
    return Decision(action=action, category=None, reason="a hook says so")


def test_the_last_message_decides_what_is_judged() -> None:
    def scores(stage: str, text: str) -> float:
        return 0.9 if (stage, text) == ("output", "bad answer") else 0.1

    guard = Guard(model=FakeModel(scores))
    question = {"role": "user", "content": "a question"}

    prompt = guard.check_sync([question])
    response = guard.check_sync([question, {"role": "assistant", "content": "bad answer"}])

    assert not prompt.blocked
    assert response.blocked
    assert response.verdict is not None
    assert (response.verdict.stage, response.verdict.message_index) == ("output", 1)
    assert response.decision.category is Category.S2


def test_langchain_messages_are_judged() -> None:
    guard = Guard(model=FakeModel(["bomb"]))

    assert not guard.check_sync([HumanMessage("hi"), AIMessage("hello")]).blocked
    assert guard.check_sync([HumanMessage("hi"), AIMessage("a bomb")]).blocked


@pytest.mark.anyio
async def test_check_gives_what_check_sync_gives() -> None:
    guard = Guard(model=FakeModel(["bomb"]))

    assert await guard.check("a bomb") == guard.check_sync("a bomb")
    assert await guard.check("a cake") == guard.check_sync("a cake")


@pytest.mark.parametrize("messages", [[], None, 3, [{"role": "tool", "content": "x"}]])
def test_what_can_not_be_judged_is_an_error_even_if_failures_pass(messages: object) -> None:
    guard = Guard(model=FakeModel(), policy=Policy(on_error="allow"))

    with pytest.raises(MessageError):
        guard.check_sync(messages)


@pytest.mark.parametrize("error", [EngineError(CANARY), ValueError(CANARY), MemoryError(CANARY)])
def test_a_failed_check_fails_closed_unless_the_policy_says_otherwise(error: Exception) -> None:
    model = FakeModel(error=error)

    closed = Guard(model=model).check_sync("hi")
    opened = Guard(model=model, policy=Policy(on_error="allow")).check_sync("hi")

    assert closed.blocked
    assert (opened.blocked, opened.decision.action) == (False, Action.ALLOW)
    for result in (closed, opened):
        assert result.verdict is None
        assert type(error).__name__ in result.decision.reason
        assert CANARY not in repr(result)


def test_a_judge_that_returns_no_verdict_has_failed() -> None:
    class Careless(FakeModel):
        def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
            return None  # type: ignore[return-value]  # the mistake under test

    assert Guard(model=Careless()).check_sync("hi").blocked


def test_a_broken_model_is_no_failed_check() -> None:
    guard = Guard(model=FakeModel(error=ArtifactError("changed")), policy=Policy(on_error="allow"))

    with pytest.raises(ArtifactError):
        guard.check_sync("hi")


@pytest.mark.parametrize("name", ["tiny", "tiny-encoder"])
def test_a_preset_that_the_model_lacks_is_refused_when_the_guard_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = r"no preset 'strict'. Use `balanced`, or set the policy's input_threshold"
    policy = Policy(preset="strict", on_error="allow")

    with pytest.raises(ArtifactError, match=why):
        Guard(DATA / name, policy)

    file = tmp_path / "policy.yaml"
    file.write_text("preset: strict\n", encoding="utf-8")
    monkeypatch.setenv("GUARDRAIL_CONFIG", str(file))
    with pytest.raises(ArtifactError, match=why):
        Guard(DATA / name)
    assert not Guard(FakeModel()).check_sync("hi").blocked, "another judge needs no presets"


@pytest.mark.parametrize("name", ["tiny", "tiny-encoder"])
def test_strict_blocks_what_balanced_lets_through(tmp_path: Path, name: str) -> None:
    verdict = Guard(DATA / name).check_sync("hi").verdict
    assert verdict is not None
    likely = verdict.unsafe_probability
    thresholds = Thresholds(unsafe=(1 + likely) / 2, strict=likely / 2)
    folder = Path(shutil.copytree(DATA / name, tmp_path / "model"))
    manifest = open_artifact(folder).manifest
    offered = {"thresholds": {"input": thresholds, "output": thresholds}}
    write_manifest(folder, manifest.model_copy(update=offered))

    strict = Guard(folder, Policy(preset="strict")).check_sync("hi")
    balanced = Guard(folder).check_sync("hi")

    assert (strict.blocked, balanced.blocked) == (True, False)
    assert strict.verdict is not None
    assert (strict.verdict.threshold, strict.verdict.policy) == (
        likely / 2,
        Policy(preset="strict").id,
    )


@pytest.mark.anyio
async def test_a_deadline_ends_a_check_that_is_judging() -> None:
    gate = Event()

    class Deaf(FakeModel):
        """Judges on, whatever its budget says."""

        def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
            gate.wait()
            return super().judge(conversation, policy, budget)

    result = await Guard(model=Deaf(), policy=Policy(deadline_ms=20)).check("hi")
    gate.set()

    assert result.blocked
    assert "EngineTimeout" in result.decision.reason


@pytest.mark.anyio
async def test_the_deadline_includes_waiting_for_a_thread() -> None:
    gate = Event()
    slow = Guard(model=FakeModel(gate=gate))
    hurried = Guard(model=FakeModel(), policy=Policy(deadline_ms=20))

    async with anyio.create_task_group() as tasks:
        for _ in range(64):
            tasks.start_soon(slow.check, "hi")
        await anyio.wait_all_tasks_blocked()
        result = await hurried.check("hi")
        gate.set()
        assert "EngineTimeout" in result.decision.reason


def test_a_deadline_ends_a_sync_check() -> None:
    guard = Guard(model=FakeModel(gate=Event()), policy=Policy(deadline_ms=20))

    assert "EngineTimeout" in guard.check_sync("hi").decision.reason


@pytest.mark.anyio
async def test_a_cancelled_check_tells_the_model_to_stop() -> None:
    budgets: list[Budget] = []
    started, stopped = Event(), Event()

    class Watching(FakeModel):
        def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
            budgets.append(budget)
            started.set()
            assert budget.cancelled.wait(10)
            stopped.set()
            return super().judge(conversation, policy, budget)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Guard(model=Watching()).check, "hi")
        await anyio.to_thread.run_sync(started.wait)
        tasks.cancel_scope.cancel()

    assert budgets[0].cancelled.is_set()
    assert stopped.wait(10)


@pytest.mark.anyio
async def test_many_checks_at_once_use_few_threads_and_never_the_loops() -> None:
    running: list[int] = []
    peak: list[int] = []
    threads: set[int] = set()
    lock = Lock()

    def scores(stage: str, text: str) -> float:
        with lock:
            running.append(1)
            peak.append(len(running))
            threads.add(get_ident())
        with lock:
            running.pop()
        return float("bad" in text)

    guard = Guard(model=FakeModel(scores))
    results: dict[int, bool] = {}

    async def check(number: int) -> None:
        text = "bad" if number % 3 == 0 else "good"
        results[number] = (await guard.check(text)).blocked

    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(check, number)

    assert results == {number: number % 3 == 0 for number in range(60)}
    assert max(peak) <= max(2, os.cpu_count() or 1)
    assert get_ident() not in threads


def test_one_guard_serves_several_event_loops_and_threads() -> None:
    guard = Guard(model=FakeModel(["bomb"]))

    async def check() -> bool:
        return (await guard.check("a bomb")).blocked

    assert [asyncio.run(check()), asyncio.run(check()), anyio.run(check, backend="trio")] == [
        *(True, True, True)
    ]


def hook_log(log: list[str], *, is_async: bool) -> Hooks:
    def before(event: CheckEvent) -> None:
        log.append(f"before {event.stage}")

    def after(event: CheckEvent, result: CheckResult) -> None:
        log.append(f"after {event.stage} {result.decision.action}")

    async def before_async(event: CheckEvent) -> None:
        before(event)

    async def after_async(event: CheckEvent, result: CheckResult) -> None:
        after(event, result)

    if is_async:
        return Hooks(
            before_input=before_async,
            after_input=after_async,
            before_output=before_async,
            after_output=after_async,
        )
    return Hooks(before_input=before, after_input=after, before_output=before, after_output=after)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.asyncio
async def test_hooks_run_around_each_check(is_async: bool) -> None:
    log: list[str] = []
    guard = Guard(model=FakeModel(["bomb"]), hooks=hook_log(log, is_async=is_async))

    async def chat(prompt: str) -> str:
        log.append("chat")
        return "a bomb"

    with pytest.raises(Blocked):
        await guard.wrap(chat)("hi")

    assert log == [
        "before input",
        "after input allow",
        "chat",
        "before output",
        "after output block",
    ]


def test_async_hooks_are_refused_where_nothing_can_await_them() -> None:
    guard = Guard(model=FakeModel(), hooks=hook_log([], is_async=True))

    def chat(prompt: str) -> str:
        return prompt

    with pytest.raises(ConfigError, match="before_input is async"):
        guard.check_sync("hi")
    with pytest.raises(ConfigError, match="before_input is async"):
        guard.wrap(chat)


def test_an_async_hook_in_disguise_is_refused_when_it_is_called() -> None:
    async def after(event: CheckEvent, result: CheckResult) -> None: ...

    guard = Guard(model=FakeModel(), hooks=Hooks(after_input=lambda e, r: after(e, r)))

    with pytest.raises(ConfigError, match="after_input is async"):
        guard.check_sync("hi")


@pytest.mark.parametrize("change", list(Action))
@pytest.mark.parametrize("policy_action", list(Action))
def test_a_hook_may_only_be_stricter(policy_action: Action, change: Action) -> None:
    policy = Policy(categories=(CategoryRule(id=Category.S2, action=policy_action),))
    hooks = Hooks(after_input=lambda event, result: decision(change))
    guard = Guard(model=FakeModel(["bomb"]), policy=policy, hooks=hooks)

    if change.severity < policy_action.severity:
        with pytest.raises(ConfigError, match="may only be stricter"):
            guard.check_sync("a bomb")
    else:
        assert guard.check_sync("a bomb").decision == decision(change)


def test_a_hooks_decision_may_name_its_action() -> None:
    block = Decision(action="block", category=None, reason="by name")  # type: ignore[arg-type]
    hooks = Hooks(after_input=lambda event, result: block)

    assert Guard(model=FakeModel(), hooks=hooks).check_sync("hi").blocked


def test_a_hooks_decision_of_no_known_action_is_refused() -> None:
    stop = Decision(action="stop", category=None, reason="by name")  # type: ignore[arg-type]
    hooks = Hooks(after_input=lambda event, result: stop)

    with pytest.raises(ConfigError, match="no known Action"):
        Guard(model=FakeModel(), hooks=hooks).check_sync("hi")


def test_a_hook_that_returns_something_else_is_refused() -> None:
    hooks = Hooks(after_input=lambda event, result: True)  # type: ignore[arg-type,return-value]

    with pytest.raises(ConfigError, match="returned bool"):
        Guard(model=FakeModel(), hooks=hooks).check_sync("hi")


@pytest.mark.parametrize("name", ["before_input", "after_input", "before_output", "after_output"])
def test_an_exception_in_a_hook_lets_nothing_through(name: str) -> None:
    calls: list[str] = []

    def fail(*args: object) -> None:
        raise LookupError("in the hook")

    def chat(prompt: str) -> str:
        calls.append("chat")
        return "answer"

    guard = Guard(model=FakeModel(), policy=Policy(on_error="allow"), hooks=Hooks(**{name: fail}))

    with pytest.raises(LookupError, match="in the hook"):
        guard.wrap(chat)("hi")
    assert calls == (["chat"] if "output" in name else [])


def test_the_policy_comes_from_the_argument_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("on_error: allow", encoding="utf-8")

    monkeypatch.delenv("GUARDRAIL_CONFIG", raising=False)
    assert Guard(model=FakeModel()).policy == Policy()
    monkeypatch.setenv("GUARDRAIL_CONFIG", str(file))
    assert Guard(model=FakeModel()).policy.on_error == "allow"
    assert Guard(model=FakeModel(), policy=Policy()).policy == Policy()
    monkeypatch.setenv("GUARDRAIL_CONFIG", str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        Guard(model=FakeModel())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guard(model=3), "model is int"),  # type: ignore[arg-type]
        (lambda: Guard(model=FakeModel(), policy={}), "policy is dict"),  # type: ignore[arg-type]
        (lambda: Guard(model=FakeModel(), hooks=print), "hooks is"),  # type: ignore[arg-type]
        (lambda: Guard(model=FakeModel()).wrap("chat"), "str can't be called"),  # type: ignore[call-overload]
    ],
)
def test_wrong_arguments_are_refused_at_once(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_missing_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a model folder"):
        Guard(model=tmp_path / "nothing")


def test_blocked_pickles_and_holds_no_text() -> None:
    with pytest.raises(Blocked) as raised:
        Guard(model=FakeModel([CANARY])).wrap(str.upper)(CANARY)

    again = pickle.loads(pickle.dumps(raised.value))

    assert isinstance(again, Blocked)
    assert (again.decision, again.verdict) == (raised.value.decision, raised.value.verdict)
    assert again.decision.category is Category.S2
    assert CANARY.encode() not in pickle.dumps(raised.value)
    assert CANARY not in repr(raised.value) + str(raised.value)
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


def test_nothing_is_logged_of_what_is_judged(caplog: pytest.LogCaptureFixture) -> None:
    events: list[CheckEvent] = []
    guard = Guard(
        model=FakeModel(error=RuntimeError(CANARY)), hooks=Hooks(before_input=events.append)
    )
    with caplog.at_level(logging.DEBUG):
        result = guard.check_sync(CANARY)

    assert CANARY not in caplog.text + repr(result) + repr(events)


def test_a_verdict_after_the_deadline_is_a_failed_check_in_sync_code_too() -> None:
    class Late(FakeModel):
        def judge(self, conversation: Conversation, policy: Policy, budget: Budget) -> Verdict:
            Event().wait(0.05)
            return super().judge(conversation, policy, Budget())

    result = Guard(model=Late(), policy=Policy(deadline_ms=10)).check_sync("hello")

    assert result.blocked
    assert result.verdict is None
