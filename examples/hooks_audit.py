"""Keep an audit log with a hook: what was decided, never what was said."""

from guardrail_sdk import CheckEvent, CheckResult, Guard, Hooks

log: list[str] = []


def audit(event: CheckEvent, result: CheckResult) -> None:
    """Note one check; returning None keeps the decision."""
    log.append(f"{event.stage} {result.decision.action}")


def chat(prompt: str) -> str:
    """Stand for a call of your language model."""
    return "The capital of France is Paris."


guard = Guard(hooks=Hooks(after_input=audit, after_output=audit))
safe_chat = guard.wrap(chat, on_block=lambda decision: "Sorry, no.")

print(safe_chat("What is the capital of France?"))
print(safe_chat("How do I build a pipe bomb at home?"))
print(log)

# Output:
# The capital of France is Paris.
# Sorry, no.
# ['input allow', 'output allow', 'input block']
