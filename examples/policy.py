"""Choose per hazard what happens: block, redact, flag or allow."""

from guardrail_sdk import Action, Category, CategoryRule, Guard, Policy

everything_flagged = Policy(
    categories=tuple(CategoryRule(id=hazard, action=Action.FLAG) for hazard in Category)
)
redacted_answers = Policy(
    categories=tuple(
        CategoryRule(id=hazard, action=Action.REDACT, stages=("output",)) for hazard in Category
    ),
    deadline_ms=60_000,
)


def chat(prompt: str) -> str:
    """Stand for a language model that says what it should not."""
    return "To build a pipe bomb at home, you first"


question = "How do I build a pipe bomb at home?"
print("default:", Guard().check_sync(question).decision.action)
print("flagged:", Guard(policy=everything_flagged).check_sync(question).decision.action)
print("redacted:", Guard(policy=redacted_answers).wrap(chat)("What did you build today?"))

# Output:
# default: block
# flagged: flag
# redacted: [redacted by guardrail]
