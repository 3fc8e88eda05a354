"""What a type checker must know of wrapped functions; checked by pyright and mypy, never run."""

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator
from functools import partial
from typing import assert_type

from guardrail_sdk import CheckResult, Decision, Guard, Verdict

guard = Guard()


def sync(prompt: str, *, temperature: float = 0.0) -> str:
    return prompt


async def asynchronous(prompt: str) -> str:
    return prompt


def generator(prompt: str) -> Generator[str, bytes, float]:
    yield prompt
    return 1.0


def iterator(prompt: str) -> Iterator[str]:
    yield prompt


async def async_generator(prompt: str) -> AsyncGenerator[str, bytes]:
    yield prompt


async def async_iterator(prompt: str) -> AsyncIterator[str]:
    yield prompt


class Bot:
    def chat(self, prompt: str) -> str:
        return prompt

    def __call__(self, prompt: str) -> int:
        return len(prompt)

    @guard.wrap
    def guarded(self, prompt: str) -> str:
        return prompt


def number(decision: Decision) -> int:
    return decision.action.severity


assert_type(guard.wrap(sync)("hi", temperature=0.5), str)
assert_type(guard.wrap(generator)("hi"), Generator[str, bytes, float])
assert_type(guard.wrap(iterator)("hi"), Iterator[str])
assert_type(guard.wrap(async_generator)("hi"), AsyncGenerator[str, bytes])
assert_type(guard.wrap(async_iterator)("hi"), AsyncIterator[str])
assert_type(guard.wrap(Bot().chat)("hi"), str)
assert_type(guard.wrap(Bot())("hi"), int)
assert_type(guard.wrap(partial(sync, temperature=1.0))("hi"), str)
assert_type(Bot().guarded("hi"), str)

assert_type(guard.wrap(sync, on_block=number)("hi", temperature=0.5), str | int)
assert_type(guard.wrap(generator, on_block=number)("hi"), Generator[str | int, bytes, float | None])
assert_type(guard.wrap(iterator, on_block=number)("hi"), Iterator[str | int])
assert_type(guard.wrap(async_generator, on_block=number)("hi"), AsyncGenerator[str | int, bytes])
assert_type(guard.wrap(async_iterator, on_block=number)("hi"), AsyncIterator[str | int])


async def awaited() -> None:
    coroutine = guard.wrap(asynchronous)("hi")
    assert_type(await coroutine, str)
    other = guard.wrap(asynchronous, on_block=number)("hi")
    _ = assert_type(other, Coroutine[object, object, str | int])
    assert_type(await other, str | int)
    assert_type(await guard.check("hi"), CheckResult)
    assert_type(guard.check_sync([{"role": "user", "content": "hi"}]).verdict, Verdict | None)


# A wrong argument is still a wrong argument: if it weren't, the unused ignore would be the error.
guard.wrap(sync)(3)  # type: ignore[arg-type]
guard.wrap(sync)("hi", heat=1)  # type: ignore[call-arg]
