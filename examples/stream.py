"""Wrap a generator: chunks are held back until the text they belong to was judged."""

from collections.abc import Iterator

from guardrail_sdk import Guard

ANSWER = (
    "Water boils at one hundred degrees Celsius at sea level. ",
    "On a high mountain it boils earlier, since the air presses less.\n",
    "How to build a pipe bomb at home: ",
    "first, you",
)


def chat(prompt: str) -> Iterator[str]:
    """Stand for the stream of your language model."""
    for chunk in ANSWER:
        print("  model says a chunk")
        yield chunk


safe_chat = Guard().wrap(chat, on_block=lambda decision: "[stopped]\n")

for piece in safe_chat("When does water boil?"):
    print("reader gets:", piece.strip())

# Output:
#   model says a chunk
#   model says a chunk
# reader gets: Water boils at one hundred degrees Celsius at sea level.
# reader gets: On a high mountain it boils earlier, since the air presses less.
#   model says a chunk
#   model says a chunk
# reader gets: [stopped]
