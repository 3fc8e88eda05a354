"""What the machine can do at best, and where a run's time goes.

Usage: `probe.py OUT ROOT MODEL...`: writes the limits, and each model's time by operator.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from inputs import from_json
from models import THREADS, guard_folder

from guardrail_sdk._engine import Engine
from guardrail_sdk._expand import expand
from guardrail_sdk.artifact import Artifact

_READ_BYTES: Final = 2**30
_SIDE: Final = 2048
_REPEATS: Final = 5
_PROFILED: Final = 5
_TOP: Final = 6


def main() -> None:
    """Probe and write."""
    out, root, *names = sys.argv[1:]
    found: dict[str, object] = {
        "machine": machine(),
        "read_gb_s": _read_rate(),
        "gemm_gflops": _gemm_rate(),
        "operators": {name: _operators(name, Path(root)) for name in names},
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def machine() -> str:
    """Return the processor's name, as well as the system tells it, cores and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() == "flags":
                flags = set(value.split())
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if kind in flags]
    version: str = import_module("onnxruntime").__version__
    return (
        f"{name}, {os.cpu_count()} cores ({', '.join(kinds) or 'no AVX2'}), {THREADS} threads, "
        f"Python {platform.python_version()}, onnxruntime {version}"
    )


def _best(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some runs."""
    times: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _read_rate() -> float:
    """Return GB/s of reading memory once, with all threads."""
    torch = import_module("torch")
    torch.set_num_threads(THREADS)
    values = torch.ones(_READ_BYTES // 4)
    return _READ_BYTES / _best(values.sum) / 1e9


def _gemm_rate() -> float:
    """Return GFLOP/s of float32 matrix products, by the faster of torch and onnxruntime."""
    torch = import_module("torch")
    left, right = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    seconds = min(_best(lambda: left @ right), _onnxruntime_gemm(right.numpy()))
    return 2 * _SIDE**3 / seconds / 1e9


def _onnxruntime_gemm(right: np.ndarray[Any, Any]) -> float:
    ort, onnx = import_module("onnxruntime"), import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "gemm",
        [helper.make_tensor_value_info("left", kind, right.shape)],
        [helper.make_tensor_value_info("product", kind, right.shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(model.SerializeToString(), options)
    return _best(lambda: session.run(None, {"left": right}))


def _operators(name: str, root: Path) -> dict[str, object]:
    """Return what share of a 64-token message's time each operator takes, the longest first."""
    artifact = guard_folder(name, root)
    inputs = from_json(json.loads((root / name / "inputs.json").read_text(encoding="utf-8")))
    rows = inputs.lengths["64"][0].rows
    engine = Engine(artifact)
    kernel = engine._fastest()
    with TemporaryDirectory() as folder:
        session = _profiled(artifact, kernel, Path(folder) / "profile")
        feed = engine._feed(rows)
        for _ in range(_PROFILED):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    whole = spent.total()
    return {
        "kernel": kernel,
        "tokens": sum(map(len, rows)),
        "shares": {kind: taken / whole for kind, taken in spent.most_common(_TOP)},
    }


def _profiled(artifact: Artifact, kernel: Any, prefix: Path) -> Any:
    """Open the graph as the SDK does, but with profiling."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    graph: str | bytes = str(artifact.graph)
    if kernel != "int4":
        graph = expand(artifact.graph.read_bytes(), artifact.folder, kernel)
        entry = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(entry, str(artifact.folder))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
