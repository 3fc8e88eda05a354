"""Test your app with a fake model: what it says is up to the test."""

from guardrail_sdk import Blocked, Category, Guard
from guardrail_sdk.testing import FakeModel


def echo(prompt: str) -> str:
    """Stand for a call of your language model."""
    return f"You said: {prompt}"


def answer(guard: Guard, prompt: str) -> str:
    """Stand for the code under test."""
    try:
        return guard.wrap(echo)(prompt)
    except Blocked as blocked:
        return f"Refused: {blocked.decision.category}"


def test_unsafe_prompts_are_refused() -> None:
    """The fake model takes every text with the word `dragon` for a violent crime."""
    guard = Guard(model=FakeModel(["dragon"], category=Category.S1))
    assert answer(guard, "Feed the cat") == "You said: Feed the cat"
    assert answer(guard, "Feed the dragon") == "Refused: S1"


def test_a_failed_check_is_refused() -> None:
    """A model that fails lets nothing through, for the policy fails closed."""
    assert answer(Guard(model=FakeModel.failing()), "Feed the cat") == "Refused: None"


if __name__ == "__main__":
    test_unsafe_prompts_are_refused()
    test_a_failed_check_is_refused()
    print("Both tests pass.")

# Output:
# Both tests pass.
