"""Opens a model's ONNX graph in onnxruntime, and refuses one that its manifest doesn't describe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from guardrail_sdk import _cache
from guardrail_sdk._errors import ArtifactError
from guardrail_sdk._expand import EXPANSION, Kernel, expand
from guardrail_sdk._external import external_files
from guardrail_sdk.artifact import Artifact, open_artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Beyond this many threads a guard's small matrices gain little and take cores from the app.
_MOST_THREADS: Final = 8
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_NO_TELEMETRY: Final = "ORT_DISABLE_TELEMETRY"
_CPUS: Final = Path("/sys/devices/system/cpu")


class Node(Protocol):
    """An input or output of a graph."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...


class RunOptions(Protocol):
    """The options of runs; `terminate` may be set from another thread to end them."""

    terminate: bool


class Session(Protocol):
    """A loaded graph, which any number of threads may run at once."""

    def get_inputs(self) -> Sequence[Node]: ...
    def get_outputs(self) -> Sequence[Node]: ...
    def run(
        self,
        output_names: Sequence[str],
        input_feed: Mapping[str, NDArray[np.generic]],
        run_options: RunOptions,
    ) -> Sequence[NDArray[np.float32]]: ...


class _SessionOptions(Protocol):
    graph_optimization_level: object
    intra_op_num_threads: int
    inter_op_num_threads: int
    enable_mem_pattern: bool
    log_severity_level: int

    def add_session_config_entry(self, key: str, value: str) -> None: ...


class _OptimisationLevels(Protocol):
    ORT_ENABLE_ALL: object


class _Onnxruntime(Protocol):
    """What is used of the onnxruntime module, which has no type stubs."""

    __version__: str
    GraphOptimizationLevel: _OptimisationLevels

    def SessionOptions(self) -> _SessionOptions: ...
    def RunOptions(self) -> RunOptions: ...
    def InferenceSession(
        self, path: str | bytes, sess_options: _SessionOptions, *, providers: Sequence[str]
    ) -> Session: ...


def run_options() -> RunOptions:
    """Return fresh run options."""
    options = _onnxruntime().RunOptions()
    options.terminate = False
    return options


def open_session(artifact: Artifact, kernel: Kernel = "int4", *, keep: bool = True) -> Session:
    """Load the graph of `artifact`, its projections expanded for `kernel`.

    Args:
        artifact: The model.
        kernel: What its projections run with.
        keep: Whether an expanded graph is kept in the user's cache.

    Raises:
        ArtifactError: If it can't be loaded, reads a file that the manifest doesn't list, or has
            other inputs or outputs than the manifest says.
    """
    _refuse_unlisted_data(artifact)
    if kernel == "int4":
        return _session(artifact, kernel, str(artifact.graph))
    name = f"{kernel}-{artifact.sha256[:32]}-{EXPANSION}"
    kept = _cache.read(name)
    if kept is not None:
        try:
            return _session(artifact, kernel, kept)
        except ArtifactError:
            _cache.drop(name)
    made = _expanded(artifact, kernel)
    session = _session(artifact, kernel, made)
    if keep:
        _cache.write(name, made)
    return session


def _session(artifact: Artifact, kernel: Kernel, graph: str | bytes) -> Session:
    """Load a graph from a path or from memory.

    Raises:
        ArtifactError: If it can't be loaded or has other inputs or outputs than the manifest says.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    # A spinning thread burns a core for a while after each run: the app's, not ours.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for every new shape, and shapes differ from text to text.
    options.enable_mem_pattern = False
    # Failures are raised; its own log lines on stderr would only repeat them.
    options.log_severity_level = 4
    if kernel != "int4":
        # An expanded graph comes from memory; the weights that it keeps lie where they were.
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(artifact.folder))
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(
            f"onnxruntime can't load {artifact.graph} ({type(error).__name__}, {kernel}). Install "
            "the onnxruntime version that guardrail-sdk asks for, or rebuild the model."
        ) from error
    _check_signature(session, artifact)
    return session


def runtime_version() -> str:
    """Return the version of onnxruntime, whatever distribution it came in."""
    return _onnxruntime().__version__


def _onnxruntime() -> _Onnxruntime:
    # A guard reports to nobody. Since 1.29 onnxruntime does, unless told otherwise before it is
    # imported; and a forked child waits at its end for the thread that would have.
    os.environ.setdefault(_NO_TELEMETRY, "1")
    return cast("_Onnxruntime", import_module("onnxruntime"))


def _expanded(artifact: Artifact, kernel: Kernel) -> bytes:
    """Return the graph expanded for `kernel`, made of the very files that the manifest seals.

    Raises:
        ArtifactError: If it can't be expanded, or a file was changed.
    """
    try:
        made = expand(artifact.graph.read_bytes(), artifact.folder, kernel)
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        raise ArtifactError(
            f"{artifact.graph} can't be expanded for the kernel {kernel} ({error}). Use int4."
        ) from error
    open_artifact(artifact.folder, expected_sha256=artifact.sha256)
    return made


def _refuse_unlisted_data(artifact: Artifact) -> None:
    """Raise ArtifactError if the graph reads a file whose hash the manifest doesn't hold."""
    try:
        external = external_files(artifact.graph.read_bytes())
    except ValueError as error:
        raise ArtifactError(
            f"{artifact.graph} is not an ONNX file ({error}). Rebuild the model."
        ) from error
    unlisted = sorted(external - artifact.manifest.files.keys())
    if unlisted:
        raise ArtifactError(
            f"{artifact.graph} reads {unlisted[0]!r}, which its manifest doesn't list. "
            "Rebuild the model."
        )


def _check_signature(session: Session, artifact: Artifact) -> None:
    """Raise ArtifactError unless the graph's inputs and outputs are what the manifest says."""
    manifest = artifact.manifest
    decoder = manifest.family == "llama"
    layers = manifest.layers if decoder else 0
    past = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    inputs = {node.name: (node.type, len(node.shape)) for node in session.get_inputs()}
    caches = {tuple(node.shape[1::2]) for node in session.get_inputs() if len(node.shape) == 4}
    outputs = {
        node.name: (node.type, len(node.shape), node.shape[-1]) for node in session.get_outputs()
    }
    logits = ("tensor(float)", 3 if decoder else 2, len(manifest.outputs))
    expected_inputs = {
        "input_ids": ("tensor(int64)", 2),
        "attention_mask": ("tensor(int64)", 2),
        **{f"past_key_values.{name}": ("tensor(float)", 4) for name in past},
    }
    if (
        inputs != expected_inputs
        or caches != ({(manifest.kv_heads, manifest.head_dim)} if decoder else set())
        or outputs.get("logits") != logits
        or not outputs.keys() >= {f"present.{name}" for name in past}
    ):
        raise ArtifactError(
            f"{artifact.graph} has other inputs or outputs than its manifest says. "
            "Rebuild the model."
        )


def _threads() -> int:
    """Return how many threads a run uses: the physical cores this process may use, bounded."""
    if not hasattr(os, "sched_getaffinity"):
        return min(_MOST_THREADS, os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0)
    cores: set[str] = set()
    for cpu in allowed:
        siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text(encoding="ascii"))
        except OSError:
            return min(_MOST_THREADS, len(allowed))
    return max(1, min(_MOST_THREADS, len(cores)))
