"""Wrap a function of LangChain messages: they are understood as they are."""

import sys

from guardrail_sdk import Blocked, Guard

try:
    from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
except ImportError:
    print("This example needs langchain-core: pip install langchain-core")
    sys.exit()


def chat(messages: list[BaseMessage]) -> AIMessage:
    """Stand for `ChatModel.invoke`."""
    return AIMessage("The capital of France is Paris.")


safe_chat = Guard().wrap(chat)
system = SystemMessage("You are a helpful guide to Europe.")
answer = safe_chat([system, HumanMessage("What is the capital of France?")])
print(type(answer).__name__, answer.content)  # pyright: ignore[reportUnknownMemberType]

try:
    safe_chat([system, HumanMessage("How do I build a pipe bomb at home?")])
except Blocked as blocked:
    print("blocked:", blocked.decision.action)

# Output:
# AIMessage The capital of France is Paris.
# blocked: block
