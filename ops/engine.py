"""One replica: its command, its environment, and the warm-up before it counts as ready."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

from ops import vllm_adapters
from ops.config import Engine

SERVED = "base"
"""Name of the base model itself; users never get it (see `ops.store.identity_adapter`)."""
MAX_CPU_LORAS = 256
"""vLLM dies when asked for an adapter that it evicted and whose files are gone: never let it evict."""
SHUTDOWN_S = 15
"""How long running replies may go on after SIGTERM."""


def command(engine: Engine, base_dir: Path, port: int) -> list[str]:
    """The replica's argv. It listens on the loopback interface: its admin routes have no authentication."""
    shared = {
        "--model": str(base_dir),
        "--served-model-name": SERVED,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": engine.dtype,
        "--max-model-len": str(engine.max_model_len),
        "--max-num-seqs": str(engine.max_num_seqs),
        "--max-lora-rank": str(engine.max_lora_rank),
    }
    if engine.kind == "transformers":
        return [sys.executable, "-m", "ops.transformers_engine", *_flags(shared), *engine.extra_args]
    vllm = shared | {
        "--max-loras": str(engine.max_loras),
        "--max-cpu-loras": str(MAX_CPU_LORAS),
        "--logprobs-mode": "processed_logprobs",
        "--scheduling-policy": "priority",
        "--generation-config": "vllm",
        "--shutdown-timeout": str(SHUTDOWN_S),
        "--uvicorn-log-level": "warning",
    }
    switches = ["--enable-lora", "--enforce-eager", "--no-enable-log-requests"]
    if cpu_build():  # a seeded request whose prompt is prefilled in chunks kills vLLM 0.32 on a CPU
        switches += ["--no-enable-chunked-prefill"]
        vllm["--max-num-batched-tokens"] = str(max(4096, engine.max_model_len))
    module = ["-m", "vllm.entrypoints.openai.api_server"]
    return [sys.executable, *module, *_flags(vllm), *switches, *engine.extra_args]


def environment(engine: Engine, environ: Mapping[str, str], cpus: int | None = None) -> dict[str, str]:
    """The replica's environment: no hub, run-time adapters, threads that leave cores to the learner.

    Threads are not bound to cores: vLLM's own binding takes all but one, and on small machines two bound
    processes starve each other. For the same reason the engine's core runs the model itself: a worker process
    of its own would spin for a second after every step, taking a whole core from the learner.
    """
    cores = len(os.sched_getaffinity(0)) if cpus is None else cpus
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    threads = environ.get("OMP_NUM_THREADS", str(max(1, cores // 2)))
    own = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", **quiet}
    if engine.kind == "vllm":
        own |= {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(engine.kv_cache_gib))),
            "VLLM_CPU_OMP_THREADS_BIND": environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            "VLLM_ENABLE_V1_MULTIPROCESSING": environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_PLUGINS": "",
        }
    return {**environ, **own}


def warm_up(url: str, name: str, path: Path | str) -> str:
    """Load an adapter and generate with it once, greedily and by sampling; vLLM compiles in between.

    Returns: the adapter's fingerprint. Raises: EngineError, EngineUnavailable.
    """
    if name not in vllm_adapters.listed(url):
        vllm_adapters.load(url, name, path)
    vllm_adapters.sample_once(url, name)
    return vllm_adapters.probe(url, name)


def cpu_build() -> bool:
    """Whether the vLLM installed here is the one for CPUs."""
    return any(True for _ in distributions(name="vllm-cpu"))


def _flags(options: Mapping[str, str]) -> list[str]:
    return [part for flag, value in options.items() for part in (flag, value)]
