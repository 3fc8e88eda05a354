"""Rows as a model trains on them: token ids, the positions to read, and what to say there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guardrail_sdk import Category
from guardrail_sdk.evaluation import Row
from guardrail_sdk.prompt import LlamaGuardTemplate, TemplateId, template
from guardrail_sdk.tokenizer import PromptTokenizer

UNKNOWN = float("nan")
"""A label that a row doesn't give; no loss is taken there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One encoded row.

    Attributes:
        id: The row's id.
        ids: Token ids of the prompt and, but for its last token, the answer.
        positions: Where logits are read: the verdict's position, then the answer's.
        labels: float32 [positions, outputs]: probabilities, or `UNKNOWN`.
        weight: How much the row counts in the loss.
    """

    id: str
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side, right-padded.

    Attributes:
        rows: Index of each example.
        ids: int64 [B, S].
        positions: int64 [B, P]; rows with fewer positions repeat position 0.
        labels: float32 [B, P, outputs]; `UNKNOWN` where positions repeat.
        weights: float32 [B].
    """

    rows: tuple[int, ...]
    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor


class Encoder:
    """Turns rows into examples for one template and tokenizer.

    Args:
        template_id: The template.
        tokenizer: A `tokenizer.json`.
        context: The most tokens of an example.
        weights: How much the rows of a source count in the loss; 1 where it isn't named.
    """

    def __init__(
        self,
        template_id: TemplateId,
        tokenizer: bytes,
        context: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.template = template(template_id)
        self._context = context
        self._weights = weights or {}
        self._tokenizer = PromptTokenizer(tokenizer)
        self._outputs = {name: index for index, name in enumerate(self.template.outputs)}

    def encode(self, row: Row) -> Example:
        """Return the example of `row`, its longest messages cut until it fits the context.

        Raises:
            ValueError: If not even empty messages fit.
        """
        example = self._whole(row)
        while len(example.ids) > self._context:
            contents = [message.content for message in row.messages]
            longest = max(range(len(contents)), key=lambda place: len(contents[place]))
            if not contents[longest]:
                raise ValueError(f"{self._context} tokens don't hold the template alone.")
            kept = int(0.95 * len(contents[longest]) * self._context / len(example.ids))
            messages = list(row.messages)
            messages[longest] = replace(messages[longest], content=contents[longest][:kept])
            row = row.model_copy(update={"messages": tuple(messages)})
            example = self._whole(row)
        return example

    def _whole(self, row: Row) -> Example:
        prompt = self._tokenizer.encode(self.template.render(row.messages))
        if isinstance(self.template, LlamaGuardTemplate):
            return self._with_answer(row, prompt)
        labels = torch.full((1, len(self._outputs)), UNKNOWN)
        if row.unsafe is not None:
            labels[0, 0], labels[0, 1] = float(not row.unsafe), float(row.unsafe)
        if row.unsafe is False or row.categories:
            labels[0, 2:] = torch.tensor([float(hazard in row.categories) for hazard in Category])
        return Example(
            id=row.id,
            ids=tuple(prompt),
            positions=(len(prompt) - 1,),
            labels=labels,
            weight=self._weights.get(row.source, 1.0),
        )

    def _with_answer(self, row: Row, prompt: list[int]) -> Example:
        """Append the written answer, token by token, as Llama Guard was trained to give it."""
        answer = llama_guard_answer(row) if row.unsafe is not None else []
        labels = torch.full((max(1, len(answer)), len(self._outputs)), UNKNOWN)
        for position, token in enumerate(answer):
            labels[position] = 0.0
            labels[position, self._outputs[token]] = 1.0
        fed = [self._tokenizer.output_id(token) for token in answer[:-1]]
        positions = range(len(prompt) - 1, len(prompt) - 1 + len(labels))
        return Example(
            id=row.id,
            ids=(*prompt, *fed),
            positions=tuple(positions),
            labels=labels,
            weight=self._weights.get(row.source, 1.0),
        )


def llama_guard_answer(row: Row) -> list[str]:
    """Return what Llama Guard says of `row`, in its own 20 tokens."""
    end = "<|eot_id|>"
    if not row.unsafe:
        return ["safe", end]
    answer = ["unsafe"]
    numbers = [hazard.value[1:] for hazard in row.categories if hazard is not Category.S14]
    for index, number in enumerate(numbers):
        answer += ["\n", "S", number] if index == 0 else [",S", number]
    return [*answer, end]


def batches(examples: Sequence[Example], batch_tokens: int, seed: int | None) -> Iterator[Batch]:
    """Yield the examples in batches of similar length, at most `batch_tokens` padded tokens each.

    Args:
        examples: What to batch.
        batch_tokens: Padded tokens per batch; a longer example makes a batch of its own.
        seed: Shuffles; None for a fixed order by length.
    """
    shuffled = None if seed is None else torch.Generator().manual_seed(seed)
    order = _permutation(len(examples), shuffled)
    # Sorting within large pools keeps padding small and the order still mostly random.
    pool = len(order) if shuffled is None else 64 * 16
    groups: list[list[int]] = []
    for start in range(0, len(order), pool):
        group: list[int] = []
        for index in sorted(order[start : start + pool], key=lambda row: len(examples[row].ids)):
            if group and (len(group) + 1) * len(examples[index].ids) > batch_tokens:
                groups.append(group)
                group = []
            group.append(index)
        groups.append(group)
    for index in _permutation(len(groups), shuffled):
        yield _collate(examples, groups[index])


def _permutation(count: int, shuffled: torch.Generator | None) -> list[int]:
    """Return 0 to `count` - 1, in random order if there is a generator."""
    if shuffled is None:
        return list(range(count))
    order: list[int] = torch.randperm(count, generator=shuffled).tolist()
    return order


def _collate(examples: Sequence[Example], group: Sequence[int]) -> Batch:
    chosen = [examples[index] for index in group]
    length = max(len(example.ids) for example in chosen)
    reads = max(len(example.positions) for example in chosen)
    ids = torch.zeros(len(chosen), length, dtype=torch.int64)
    positions = torch.zeros(len(chosen), reads, dtype=torch.int64)
    labels = torch.full((len(chosen), reads, chosen[0].labels.shape[1]), UNKNOWN)
    for row, example in enumerate(chosen):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        positions[row, : len(example.positions)] = torch.tensor(example.positions)
        labels[row, : len(example.positions)] = example.labels
    weights = torch.tensor([example.weight for example in chosen])
    return Batch(rows=tuple(group), ids=ids, positions=positions, labels=labels, weights=weights)
