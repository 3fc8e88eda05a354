"""Stage `importance`: how much each block and each MLP neuron of the teacher matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from guardrail_model_build.bert import Layer
from guardrail_model_build.checkpoint import Model
from guardrail_model_build.data import load_split, sample
from guardrail_model_build.examples import Encoder, Example, batches
from guardrail_model_build.llama import Block
from guardrail_model_build.workspace import Metrics, Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """What pruning ranks by.

    Attributes:
        blocks: float32 [layers]: 1 - E[cos(x_in, x_out)] over tokens, where x is the residual
            stream (block influence: ShortGPT, arXiv 2403.03853, section 3.2).
        neurons: float32 [layers, mlp]: the l2 norm of a neuron's activations over an example's
            tokens, averaged over examples (arXiv 2411.17713, section 3.1).
    """

    blocks: Tensor
    neurons: Tensor


def run(workspace: Workspace, out: Path) -> Metrics:
    """Measure the teacher on calibration rows from the training split."""
    teacher = workspace.checkpoint("teacher")
    rows = load_split(workspace.stage("data"), "train")
    encoder = Encoder(teacher.template, teacher.tokenizer, workspace.recipe.context_length)
    chosen = sample(rows, workspace.recipe.prune.calibration_rows)
    importance = measure(teacher.model(), [encoder.encode(row) for row in chosen])
    save_file({"blocks": importance.blocks, "neurons": importance.neurons}, out / FILE)
    return {"rows": len(chosen), "blocks": [round(float(score), 4) for score in importance.blocks]}


FILE = "importance.safetensors"


def load(folder: Path) -> Importance:
    """Return what `run` wrote into `folder`."""
    tensors = load_file(folder / FILE)
    return Importance(blocks=tensors["blocks"], neurons=tensors["neurons"])


def measure(model: Model, examples: list[Example], *, batch_tokens: int = 2048) -> Importance:
    """Return the importance of `model`'s blocks and neurons on `examples`; padding is left out."""
    config = model.config
    cosines = torch.zeros(config.layers, dtype=torch.float64)
    norms = torch.zeros(config.layers, config.mlp, dtype=torch.float64)
    real = torch.empty(0)

    def watch_block(index: int, entering: Tensor, output: Tensor) -> None:
        similarity = F.cosine_similarity(entering.float(), output.float(), dim=-1)
        cosines[index] += (similarity * real).sum().double()

    def watch_neurons(index: int, activations: Tensor) -> None:
        squares = activations.float().square() * real.unsqueeze(-1)
        norms[index] += squares.sum(1).sqrt().sum(0).double()

    handles: list[RemovableHandle] = []
    for index, block in enumerate(model.model.blocks):
        handles += _watch(index, block, watch_block, watch_neurons)
    tokens = 0
    with torch.inference_mode():
        for batch in batches(examples, batch_tokens, None):
            lengths = torch.tensor([len(examples[row].ids) for row in batch.rows])
            real = (torch.arange(batch.ids.shape[1]) < lengths.unsqueeze(1)).float()
            tokens += int(lengths.sum())
            model(batch.ids, batch.positions)
    for handle in handles:
        handle.remove()
    return Importance(
        blocks=(1 - cosines / tokens).float(), neurons=(norms / len(examples)).float()
    )


def _watch(
    index: int,
    block: Block | Layer,
    on_block: Callable[[int, Tensor, Tensor], None],
    on_neurons: Callable[[int, Tensor], None],
) -> list[RemovableHandle]:
    """Hook what enters and leaves one block, and what enters its down projection."""

    def around(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on_block(index, inputs[0], output)

    return [
        block.register_forward_hook(around),
        block.mlp.down_proj.register_forward_pre_hook(
            lambda _, inputs: on_neurons(index, inputs[0])
        ),
    ]
