"""The prompt templates: the contract, shared by build and runtime, of what a guard model reads.

A template turns a conversation into pieces. `Special` pieces become single token ids by name;
`Text` pieces are tokenised with special tokens switched off, so that no text, whatever it
spells, can become template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from guardrail_sdk._errors import MessageError
from guardrail_sdk._types import Category, Message, Stage

TemplateId = Literal["compact", "segments", "llama-guard-3"]


@dataclass(frozen=True, slots=True)
class Special:
    """One special token, by its name in the tokenizer."""

    token: str


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that are tokenised as ordinary text."""

    text: str


Piece = Special | Text


class Template(Protocol):
    """How a conversation becomes what the model reads."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """What each output logit means, in order: the rows kept of the unembedding."""
        ...

    @property
    def decodes_categories(self) -> bool:
        """True if categories are written out token by token after the verdict."""
        ...

    def render(self, conversation: Sequence[Message]) -> list[Piece]:
        """Return the pieces up to the position whose logits are the verdict.

        Raises:
            MessageError: If the conversation is empty or ends in a message that isn't a user's
                or an assistant's.
        """
        ...


def stage_of(conversation: Sequence[Message]) -> Stage:
    """Return what judging the last message of `conversation` checks: `input` or `output`.

    Raises:
        MessageError: If the conversation is empty or ends in another role.
    """
    if not conversation:
        raise MessageError("The conversation is empty: pass at least one message.")
    role = conversation[-1].role
    if role == "user":
        return "input"
    if role == "assistant":
        return "output"
    raise MessageError(
        f"The last message has role {role!r}; only a user's or an assistant's message is judged."
    )


@dataclass(frozen=True, slots=True)
class CompactTemplate:
    """Ours, for models made by this project: role markers, the text, one verdict position.

    It carries no policy text, so a check costs the message plus a few tokens, and one forward
    pass gives the verdict (softmax over `safe` and `unsafe`) and every category (sigmoid).
    It is written in the ChatML tokens that SmolLM2 and many other bases know.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """`safe`, `unsafe`, then S1 to S14."""
        return ("safe", "unsafe", *Category)

    @property
    def decodes_categories(self) -> bool:
        """False: categories are read from the verdict position."""
        return False

    def render(self, conversation: Sequence[Message]) -> list[Piece]:
        """Return each message between ChatML markers, then the opening of a verdict turn."""
        stage = stage_of(conversation)
        pieces: list[Piece] = []
        for message in _turns(conversation):
            pieces += [
                Special("<|im_start|>"),
                Text(f"{message.role}\n"),
                Text(message.content),
                Special("<|im_end|>"),
            ]
        return [*pieces, Special("<|im_start|>"), Text(f"{stage} verdict\n")]


@dataclass(frozen=True, slots=True)
class SegmentsTemplate:
    """Ours, for encoders made by this project: every message after its role's marker.

    The last marker tells the model which message is judged, and as what. As in `compact`, one
    forward pass gives the verdict and every category.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """`safe`, `unsafe`, then S1 to S14."""
        return ("safe", "unsafe", *Category)

    @property
    def decodes_categories(self) -> bool:
        """False: categories are outputs of the same pass."""
        return False

    def render(self, conversation: Sequence[Message]) -> list[Piece]:
        """Return `<s>`, each message after `<user>` or `<assistant>`, then `</s>`."""
        stage_of(conversation)
        pieces: list[Piece] = [Special("<s>")]
        for message in _turns(conversation):
            marker = Special("<assistant>" if message.role == "assistant" else "<user>")
            pieces += [marker, Text(message.content)]
        return [*pieces, Special("</s>")]


_LLAMA_GUARD_NAMES: Mapping[Category, str] = {
    Category.S1: "Violent Crimes",
    Category.S2: "Non-Violent Crimes",
    Category.S3: "Sex Crimes",
    Category.S4: "Child Exploitation",
    Category.S5: "Defamation",
    Category.S6: "Specialized Advice",
    Category.S7: "Privacy",
    Category.S8: "Intellectual Property",
    Category.S9: "Indiscriminate Weapons",
    Category.S10: "Hate",
    Category.S11: "Self-Harm",
    Category.S12: "Sexual Content",
    Category.S13: "Elections",
    Category.S14: "Code Interpreter Abuse",
}
LLAMA_GUARD_1B_CATEGORIES: tuple[Category, ...] = tuple(Category)[:13]
"""What Llama Guard 3-1B was trained on; the 8B model knows S14, too."""

_TURN = re.compile(r"(?m)^([^\S\n]*)(User|Agent)(?=[^\S\n]*:)")
_FENCE = re.compile(
    r"<(?=(?:BEGIN|END) (?:CONVERSATION|UNSAFE CONTENT CATEGORIES)>)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class LlamaGuardTemplate:
    """Meta's Llama Guard 3 prompt, byte for byte (see NOTICE), for checkpoints trained on it.

    Attributes:
        categories: The name, by code, of each category that is in force. The names default to
            the trained ones; a custom policy passes its own.
        size: The checkpoint's generation: the 1B prompt has a space before the end of turn,
            the 8B prompt does not.
    """

    categories: tuple[tuple[str, str], ...] = tuple(
        (category.value, _LLAMA_GUARD_NAMES[category]) for category in LLAMA_GUARD_1B_CATEGORIES
    )
    size: Literal["1B", "8B"] = "1B"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The 20 tokens a Llama Guard says (arXiv 2411.17713, section 3.4)."""
        numbers = tuple(str(number) for number in range(1, 14))
        return ("safe", "unsafe", "\n\n", "\n", "S", ",S", *numbers, "<|eot_id|>")

    @property
    def decodes_categories(self) -> bool:
        """True: the answer's second line lists the violated categories."""
        return True

    def without(self, *excluded: Category) -> LlamaGuardTemplate:
        """Return the template with `excluded` categories left out of its policy."""
        kept = tuple((code, name) for code, name in self.categories if code not in excluded)
        return LlamaGuardTemplate(categories=kept, size=self.size)

    def text(self, conversation: Sequence[Message]) -> str:
        """Return the whole prompt as Meta's chat template would write it, specials included."""
        return "".join(
            piece.token if isinstance(piece, Special) else piece.text
            for piece in self.render(conversation, answer_prefix="")
        )

    def render(
        self, conversation: Sequence[Message], *, answer_prefix: str = "\n\n"
    ) -> list[Piece]:
        """Return the prompt, and `answer_prefix`: what the model says before its verdict."""
        role = "User" if stage_of(conversation) == "input" else "Agent"
        policy = "\n".join(f"{code}: {name}." for code, name in self.categories)
        turns = "\n\n".join(
            f"{'Agent' if message.role == 'assistant' else 'User'}: {_neutralise(message.content)}"
            for message in _turns(conversation)
        )
        space = " " if self.size == "1B" else ""
        body = (
            f"\n\nTask: Check if there is unsafe content in '{role}' messages in conversations "
            "according our safety policy with the below categories.\n\n"
            f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{policy}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
            f"<BEGIN CONVERSATION>\n\n{turns}\n\n<END CONVERSATION>\n\n"
            f"Provide your safety assessment for ONLY THE LAST {role} message in the above "
            "conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second "
            f"line must include a comma-separated list of violated categories.{space}"
        )
        return [
            Special("<|begin_of_text|>"),
            Special("<|start_header_id|>"),
            Text("user"),
            Special("<|end_header_id|>"),
            Text(body),
            Special("<|eot_id|>"),
            Special("<|start_header_id|>"),
            Text("assistant"),
            Special("<|end_header_id|>"),
            *([Text(answer_prefix)] if answer_prefix else []),
        ]


def _turns(conversation: Sequence[Message]) -> list[Message]:
    """Return the messages that are said to or by the assistant.

    A system message is the app's own: no evidence of what the others mean, and nothing that
    guard models are trained to read.
    """
    return [message for message in conversation if message.role != "system"]


def _neutralise(text: str) -> str:
    """Return `text`, stripped as the template strips it, with forged turns and fences defused.

    A line that opens like a turn (`User:`) gets a quotation mark before its role, a fence
    (`<END CONVERSATION>`) loses its bracket: the model reads both as quoted text.
    """
    return _FENCE.sub("(", _TURN.sub(r'\1"\2', text.strip()))


def template(template_id: TemplateId) -> Template:
    """Return the template that a manifest names."""
    templates: Mapping[TemplateId, Template] = {
        "compact": CompactTemplate(),
        "segments": SegmentsTemplate(),
        "llama-guard-3": LlamaGuardTemplate(),
    }
    return templates[template_id]
