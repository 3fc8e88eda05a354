"""The runtimes that are compared: each opens one model and reads prompts.

They run in an environment of their own, which not every machine can have whole: what a runtime
lacks shows when it is opened. None has types; what comes out of them is checked by its logits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from inputs import WINDOWS, Item, answer_words
from models import SPARE, THREADS
from numpy.typing import NDArray

from guardrail_sdk import CheckResult, Guard, Policy
from guardrail_sdk._expand import Kernel
from guardrail_sdk._judge import Budget
from guardrail_sdk._local import LocalModel
from guardrail_sdk.artifact import Artifact

Logits = NDArray[np.float32]
Rows = Sequence[Sequence[int]]


class Subject(Protocol):
    """A runtime with a model."""

    about: str
    """Version, weights, and how it is run."""

    def logits(self, rows: Rows) -> Logits:
        """Return the logits of the guard's outputs, float32 [rows, outputs]."""
        ...

    def check(self, item: Item) -> None:
        """Come to a verdict on one message."""
        ...

    def check_all(self, items: Sequence[Item], at_once: int) -> None:
        """Come to a verdict on every message, so many of them in flight."""
        ...

    def check_growing(self, items: Sequence[Item], seed: int) -> None:
        """Check an answer each time that it has grown."""
        ...

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Return the seconds a token takes, of `count` said after `ids`; None if none is said."""
        ...

    def reads(self, rows: Rows) -> int:
        """Return how many tokens of `rows` are really read."""
        ...


class Sdk:
    """This SDK, called as an app calls it: from the text to the decision.

    Args:
        artifact: The model.
        kernel: What its projections run with; None for what the SDK chooses.
    """

    def __init__(self, artifact: Artifact, kernel: Kernel | None) -> None:
        # Nothing is blocked: it is the verdict that takes time.
        policy = Policy(max_windows=WINDOWS, input_threshold=1.0, output_threshold=1.0)
        judge = LocalModel(artifact, kernel)
        self._guard = Guard(judge, policy=policy)
        parts = judge._parts()
        self._engine = parts.engine
        self._output_ids = parts.output_ids or tuple(range(len(artifact.manifest.outputs)))
        self._kernel: Kernel = kernel or parts.engine._fastest()
        self.about = f"guardrail-sdk {version('guardrail-sdk')}, {self._kernel} projections"
        self._decoder = artifact.manifest.family == "llama"

    def logits(self, rows: Rows) -> Logits:
        """Return the logits of `rows`."""
        return self._engine.classify(rows, Budget())

    def check(self, item: Item) -> None:
        """Check one text."""
        _require_verdict(self._guard.check_sync(item.text))

    def check_all(self, items: Sequence[Item], at_once: int) -> None:
        """Check every text in one event loop."""

        async def work(waiting: list[Item]) -> None:
            while waiting:
                _require_verdict(await self._guard.check(waiting.pop().text))

        async def run() -> None:
            waiting = list(items)
            await asyncio.gather(*(work(waiting) for _ in range(at_once)))

        asyncio.run(run())

    def check_growing(self, items: Sequence[Item], seed: int) -> None:
        """Read a guarded stream whose source yields at once; its prompt is checked, too."""

        async def chat(prompt: str) -> AsyncIterator[str]:
            for chunk in answer_words(seed):
                yield chunk

        async def run() -> None:
            async for _ in self._guard.wrap(chat)(f"go on {seed}"):
                pass

        asyncio.run(run())

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Have the engine say its likeliest output, as it says categories."""
        if not self._decoder:
            return None

        def say(tokens: int) -> float:
            began = time.perf_counter()
            self._engine.answer(ids, self._output_ids, -1, tokens, Budget())
            return time.perf_counter() - began

        say(1)  # loads the graph that decodes
        return [(say(count + 1) - say(1)) / count for _ in range(3)]

    def reads(self, rows: Rows) -> int:
        """Return the tokens after those whose keys and values are kept."""
        states = self._engine._load(self._kernel).states
        kept = [states.past(row) for row in rows]
        return sum(map(len, rows)) - sum(past[0].shape[2] for past in kept if past)


def _require_verdict(result: CheckResult) -> None:
    if result.verdict is None:
        raise RuntimeError(result.decision.reason)


class Peer:
    """Another runtime, which reads the SDK's prompts; subclasses read one batch."""

    about = ""
    most_rows = 1
    """Prompts that it reads as one batch."""

    def read(self, rows: Rows) -> Logits:
        """Return the logits of a batch of at most `most_rows`."""
        raise NotImplementedError

    def logits(self, rows: Rows) -> Logits:
        """Return the logits of `rows`, batch by batch."""
        starts = range(0, len(rows), self.most_rows)
        return np.concatenate([self.read(rows[at : at + self.most_rows]) for at in starts])

    def check(self, item: Item) -> None:
        """Read every window of a message."""
        self.logits(item.rows)

    def check_all(self, items: Sequence[Item], at_once: int) -> None:
        """Read what is in flight in batches, those who can."""
        for at in range(0, len(items), at_once):
            self.logits([row for item in items[at : at + at_once] for row in item.rows])

    def check_growing(self, items: Sequence[Item], seed: int) -> None:
        """Read the whole answer again each time."""
        for item in items:
            self.logits(item.rows)

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Return None: only decoders say something."""
        return None

    def reads(self, rows: Rows) -> int:
        """Return all of them: no prefix is kept."""
        return sum(map(len, rows))


class Transformers(Peer):
    """Transformers in float32, a decoder's unembedding cut to the guard's outputs."""

    most_rows = 16

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        torch, transformers = import_module("torch"), import_module("transformers")
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._outputs = len(artifact.manifest.outputs)
        self.about = f"transformers {version('transformers')}, torch {version('torch')}, float32"
        self._encoder = artifact.manifest.family == "encoder"
        if self._encoder:
            kind = transformers.BertModel
            self._model = kind.from_pretrained(folder / "hf", add_pooling_layer=False).eval()
            self._head = _Head(artifact, folder)
            return
        self._model = transformers.LlamaForCausalLM.from_pretrained(folder / "hf").eval()
        unembedding = self._model.lm_head
        unembedding.weight = torch.nn.Parameter(unembedding.weight[: self._outputs].clone())

    def read(self, rows: Rows) -> Logits:
        """Read a batch, padded on the right."""
        torch = self._torch
        ids, mask = _padded(rows)
        attended = None if len(rows) == 1 else torch.from_numpy(mask)
        if self._encoder:
            judged = torch.from_numpy(self._head.judged(ids, mask).astype(np.int64))
            found = self._model(torch.from_numpy(ids), attended, token_type_ids=judged)
            return self._head(found.last_hidden_state.numpy(), ids, mask)
        backbone = self._model.model
        found = backbone(torch.from_numpy(ids), attention_mask=attended, use_cache=False)
        last = [len(row) - 1 for row in rows]
        states = found.last_hidden_state[range(len(rows)), last]
        return self._model.lm_head(states).numpy()

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Say one token after another."""
        if self._encoder:
            return None
        found = self._model(self._torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)
        times: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            best = found.logits[:, -1:].argmax(-1)
            found = self._model(best, past_key_values=found.past_key_values, use_cache=True)
            times.append(time.perf_counter() - began)
        return times


class Genai(Peer):
    """onnxruntime-genai on the guard's own INT4 graph, which it loads as it is."""

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        og = import_module("onnxruntime_genai")
        model = og.Model(str(artifact.folder))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=artifact.manifest.context_length + SPARE)
        self._generator = og.Generator(model, params)
        self.about = f"onnxruntime-genai {version('onnxruntime-genai')}, our ONNX file (INT4)"

    def read(self, rows: Rows) -> Logits:
        """Read one prompt from its start."""
        self._generator.rewind_to(0)
        self._generator.append_tokens(np.array(rows[0], np.int32))
        return np.array(self._generator.get_logits(), np.float32)[:, -1]

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Say the likeliest tokens."""
        best = int(self.read([ids])[0].argmax())
        times: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            self._generator.append_tokens(np.array([best], np.int32))
            best = int(np.array(self._generator.get_logits()).argmax())
            times.append(time.perf_counter() - began)
        return times


def _ignore(_level: int, _text: bytes, _data: object) -> None:
    """Take a line of llama.cpp's log."""


class LlamaCpp(Peer):
    """llama.cpp on the same INT4 codes as Q4_0; of an encoder, the backbone."""

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        cpp = import_module("llama_cpp.llama_cpp")
        self._cpp = cpp
        self._encoder = artifact.manifest.family == "encoder"
        self._outputs = len(artifact.manifest.outputs)
        self._silence = cpp.llama_log_callback(_ignore)
        cpp.llama_log_set(self._silence, None)
        cpp.llama_backend_init()
        model = cpp.llama_model_load_from_file(
            str(folder / "model.gguf").encode(), cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError("llama.cpp can't load the GGUF file")
        params = cpp.llama_context_default_params()
        context = artifact.manifest.context_length
        params.n_ctx = params.n_batch = context
        params.n_ubatch = context if self._encoder else min(context, 512)
        params.n_threads = params.n_threads_batch = THREADS
        params.embeddings = self._encoder
        params.pooling_type = 0  # none: the guard's own pooling and head follow
        self._context = cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp can't make a context")
        self._batch = cpp.llama_batch_init(context, 0, 1)
        self._hidden = cpp.llama_model_n_embd(model)
        if self._encoder:
            self._head = _Head(artifact, folder)
        head = "backbone; our head" if self._encoder else "head as large as the vocabulary"
        built = version("llama-cpp-python")
        self.about = f"llama.cpp (llama-cpp-python {built}), Q4_0 of the same codes, {head}"

    def _run(self, ids: Sequence[int], first: int) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = first + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = self._encoder or place == len(ids) - 1
        if self._cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp failed")

    def read(self, rows: Rows) -> Logits:
        """Read one prompt from its start."""
        ids = rows[0]
        if self._encoder:
            self._run(ids, 0)
            found = self._cpp.llama_get_embeddings(self._context)
            states = np.ctypeslib.as_array(found, (1, len(ids), self._hidden)).copy()
            padded, mask = _padded(rows)
            return self._head(states, padded, mask)
        self._cpp.llama_memory_clear(self._cpp.llama_get_memory(self._context), False)
        self._run(ids, 0)
        return self._last(len(ids))[None]

    def _last(self, count: int) -> Logits:
        found = self._cpp.llama_get_logits_ith(self._context, count - 1)
        return np.ctypeslib.as_array(found, (self._outputs,)).copy()

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Say the likeliest tokens."""
        if self._encoder:
            return None
        best = int(self.read([ids])[0].argmax())
        times: list[float] = []
        for place in range(count):
            began = time.perf_counter()
            self._run([best], len(ids) + place)
            best = int(self._last(1).argmax())
            times.append(time.perf_counter() - began)
        return times


class Onnxruntime(Peer):
    """Plain onnxruntime with its default options on an encoder's graph."""

    most_rows = 16

    def __init__(self, path: Path, about: str) -> None:
        ort = import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.about = f"onnxruntime {ort.__version__}, {about}"

    def read(self, rows: Rows) -> Logits:
        """Read a batch."""
        ids, mask = _padded(rows)
        return self._session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]


class OpenVino(Peer):
    """OpenVINO on the guard's own INT4 graph, or on an encoder's float32 one."""

    def __init__(self, artifact: Artifact, path: Path, about: str) -> None:
        openvino = import_module("openvino")
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": THREADS,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        self._request = compiled.create_infer_request()
        manifest = artifact.manifest
        self._decoder = manifest.family == "llama"
        empty = np.zeros((1, manifest.kv_heads, 0, manifest.head_dim), np.float32)
        layers = range(manifest.layers if self._decoder else 0)
        self._cached = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
        self._empty = {f"past_key_values.{name}": empty for name in self._cached}
        self.about = f"openvino {openvino.__version__.split('-')[0]}, {about}"

    def _run(self, ids: Sequence[int], past: Mapping[str, Logits], total: int) -> Logits:
        feed = {"input_ids": np.array([list(ids)], np.int64)}
        feed["attention_mask"] = np.ones((1, total), np.int64)
        self._request.infer({**feed, **past}, share_inputs=True)
        return self._request.get_tensor("logits").data

    def read(self, rows: Rows) -> Logits:
        """Read one prompt."""
        logits = self._run(rows[0], self._empty, len(rows[0]))
        return np.array(logits[:, -1] if self._decoder else logits)

    def decode(self, ids: Sequence[int], count: int) -> list[float] | None:
        """Say the likeliest tokens."""
        if not self._decoder:
            return None
        logits = self._run(ids, self._empty, len(ids))
        times: list[float] = []
        for place in range(count):
            began = time.perf_counter()
            past = {
                f"past_key_values.{name}": self._request.get_tensor(f"present.{name}").data.copy()
                for name in self._cached
            }
            best = int(logits[0, -1].argmax())
            logits = self._run([best], past, len(ids) + place + 1)
            times.append(time.perf_counter() - began)
        return times


class _Head:
    """An encoder's pooling and head, for runtimes that know only its backbone."""

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        load = import_module("safetensors.numpy").load_file
        weights: dict[str, Logits] = load(folder / "hf" / "head.safetensors")
        self._pool = weights["pool.weight"]
        self._weight, self._bias = weights["head.weight"], weights["head.bias"]
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(artifact.tokenizer))
        self._markers = [tokenizer.token_to_id(name) for name in ("<user>", "<assistant>")]

    def judged(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which tokens belong to the last message."""
        count = np.isin(ids, self._markers).cumsum(1)
        return (count == count[:, -1:]) & (mask == 1)

    def __call__(self, states: Logits, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Logits:
        """Return the logits of final `states` [rows, tokens, hidden]."""
        scores = (states @ self._pool.T)[..., 0]
        scores = np.where(self.judged(ids, mask), scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        return (weights[:, None] @ states)[:, 0] @ self._weight.T + self._bias


def _padded(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a subject is opened, and how exact it must be.

    Attributes:
        open: Makes it from the model and the folder of the peers' files.
        tolerance: The most that its logits may differ from float32's on average, as a share of
            their spread. INT4 graphs round activations to 8 bits, and so do Q4_0 and INT8.
    """

    open: Callable[[Artifact, Path], Subject]
    tolerance: float


_ROUNDED: Final = 0.15
_EXACT: Final = 0.005
REFERENCE: Final = "transformers"
SDK: Final = "sdk"
_SDKS: Final[Mapping[str, Entry]] = {
    REFERENCE: Entry(open=Transformers, tolerance=_EXACT),
    "sdk float32": Entry(open=lambda model, _: Sdk(model, "float32"), tolerance=_EXACT),
    "sdk int4": Entry(open=lambda model, _: Sdk(model, "int4"), tolerance=_ROUNDED),
    "sdk int8": Entry(open=lambda model, _: Sdk(model, "int8"), tolerance=_ROUNDED),
    SDK: Entry(open=lambda model, _: Sdk(model, None), tolerance=_ROUNDED),
}
_LLAMA_CPP: Final = Entry(open=LlamaCpp, tolerance=_ROUNDED)
_ENCODERS: Final[Mapping[str, Entry]] = {
    **_SDKS,
    "onnxruntime fp32": Entry(
        open=lambda _, folder: Onnxruntime(folder / "float32.onnx", "float32"), tolerance=_EXACT
    ),
    "onnxruntime int8": Entry(
        open=lambda _, folder: Onnxruntime(folder / "int8.onnx", "dynamic INT8"),
        tolerance=_ROUNDED,
    ),
    "llama.cpp": _LLAMA_CPP,
    "openvino": Entry(
        open=lambda model, folder: OpenVino(model, folder / "float32.onnx", "float32 ONNX file"),
        tolerance=_EXACT,
    ),
}
_DECODERS: Final[Mapping[str, Entry]] = {
    **_SDKS,
    "onnxruntime-genai": Entry(open=Genai, tolerance=_ROUNDED),
    "llama.cpp": _LLAMA_CPP,
    "openvino": Entry(
        open=lambda model, _: OpenVino(model, model.graph, "our ONNX file (INT4)"),
        tolerance=_ROUNDED,
    ),
}


def entries(artifact: Artifact) -> Mapping[str, Entry]:
    """Return the subjects of a model by name; the first is what the others must agree with."""
    return _ENCODERS if artifact.manifest.family == "encoder" else _DECODERS
