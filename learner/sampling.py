"""Fresh replies for PPO and evaluation, as the token ids and log-probabilities that were really sampled.

Three implementations of one seam: `LocalSampler` decodes with the trainer's own trunk; `EngineSampler` asks
the serving engines, where the adapter being trained is loaded under a name that is never used twice;
`MainSampler` gives one process's replies to all of a launch. None ever re-tokenises text.

Legend: B samples, P prompts, V vocabulary.
"""

import hashlib
import http.client
import json
import secrets
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from learner.batches import Finish, Prompt, Sample
from learner.distributed import from_main
from learner.errors import SamplingError
from learner.models import Role, Trunk, export_adapter
from ops import vllm_adapters
from ops.errors import EngineError

PREFIX = "learner-"
"""Adapter names that start so are the learner's own; the controller leaves them alone."""
REQUEST_TIMEOUT_S = 120.0
STREAMS_PER_REPLICA = 16
ROWS_AT_ONCE = 256
KEPT_SHARE = 0.75
"""Replies that have ended are decoded along until so few go on: leaving rows out copies the cache."""


class Sampler(Protocol):
    def publish(self, role: Role) -> None:
        """The weights of `role` changed: replies drawn from now on come from the new ones."""
        ...

    def sample(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        """`n` replies to each prompt, in the prompts' order, with top_p 1 and no penalties.

        Raises: SamplingError when they cannot be had."""
        ...

    def stream(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[list[Sample]]:
        """What `sample` returns, in parts as they are there: the caller can work while the rest is drawn."""
        ...

    def close(self) -> None: ...


class LocalSampler:
    """Batched decoding with a key-value cache on the trainer's own trunk: no engine, no weights moved.

    Every process of a launch draws the same; all take what the main one drew.
    """

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.version = 0

    def publish(self, role: Role) -> None:
        self.version += role is Role.POLICY

    def sample(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        generator = torch.Generator(device=self.trunk.device).manual_seed(seed)
        rows = [p for p in prompts for _ in range(n)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        samples: dict[int, Sample] = {}
        self.trunk.model.eval()
        with torch.no_grad(), self.trunk.acting(role):
            for start in range(0, len(order), ROWS_AT_ONCE):
                chunk = order[start : start + ROWS_AT_ONCE]
                drawn = self._decode([rows[i] for i in chunk], temperature, max_tokens, generator)
                samples.update(zip(chunk, drawn, strict=True))
        return from_main(lambda: [samples[i] for i in range(len(rows))])

    def stream(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[list[Sample]]:
        """In one part: whoever would work meanwhile is the one who samples."""
        yield self.sample(role, prompts, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed)

    def _decode(
        self, prompts: Sequence[Prompt], temperature: float, max_tokens: int, generator: torch.Generator
    ) -> list[Sample]:
        from transformers import DynamicCache

        device = self.trunk.device
        stop_E = torch.tensor(self.trunk.encoder.eos_ids, device=device)
        rows_B = torch.arange(len(prompts), device=device)
        ended_B = torch.zeros_like(rows_B, dtype=torch.bool)
        drawn_BT = torch.full((len(prompts), max_tokens), self.trunk.pad_id, device=device)
        logprobs_BT = torch.zeros(len(prompts), max_tokens, device=device)
        lengths_B = torch.full((len(prompts),), max_tokens, device=device)
        cache = DynamicCache(config=self.trunk.causal_lm.config)
        last_BH, mask_BL, places_B1 = self._read(prompts, cache)
        for t in range(max_tokens):
            log_BV = torch.log_softmax(self.trunk.logits(last_BH) / temperature, dim=-1)
            next_B = torch.multinomial(log_BV.exp(), 1, generator=generator).squeeze(1)
            drawn_BT[rows_B, t] = next_B
            logprobs_BT[rows_B, t] = log_BV.gather(1, next_B[:, None]).squeeze(1)
            ending_B = torch.isin(next_B, stop_E) & ~ended_B
            lengths_B[rows_B[ending_B]] = t + 1
            ended_B = ended_B | ending_B
            going_B = (~ended_B).nonzero().squeeze(1)
            if len(going_B) == 0 or t + 1 == max_tokens:
                break
            if len(going_B) <= KEPT_SHARE * len(rows_B):
                cache.batch_select_indices(going_B)
                rows_B, ended_B, next_B = rows_B[going_B], ended_B[going_B], next_B[going_B]
                mask_BL, places_B1 = mask_BL[going_B], places_B1[going_B]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)
            places_B1 = places_B1 + 1
            last_BH = self._states(next_B[:, None], mask_BL, places_B1, cache)[:, -1]
        return self._cut(prompts, drawn_BT.tolist(), logprobs_BT.tolist(), lengths_B.tolist())

    def _read(self, prompts: Sequence[Prompt], cache: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Each row's last state, mask and last place; a prompt of several replies is read once."""
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        ids_PL, mask_PL = (t.to(self.trunk.device) for t in _left_padded(list(place), self.trunk.pad_id))
        places_PL = (mask_PL.cumsum(1) - 1).clamp(min=0)
        last_PH = self._states(ids_PL, mask_PL, places_PL, cache)[:, -1]
        own_B = torch.tensor([place[prompt] for prompt in prompts], device=self.trunk.device)
        cache.batch_select_indices(own_B)
        return last_PH[own_B], mask_PL[own_B], places_PL[own_B, -1:]

    def _states(self, ids_BL: Tensor, mask_BL: Tensor, places_BL: Tensor, cache: Any) -> Tensor:
        out = self.trunk.backbone(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=places_BL,
            past_key_values=cache,
            use_cache=True,
        )
        hidden_BLH: Tensor = out.last_hidden_state
        return hidden_BLH

    def _cut(
        self,
        prompts: Sequence[Prompt],
        drawn: list[list[int]],
        logprobs: list[list[float]],
        lengths: list[int],
    ) -> list[Sample]:
        """Each row up to and with its end-of-text token."""
        stops = set(self.trunk.encoder.eos_ids)
        samples = []
        for prompt, ids, values, end in zip(prompts, drawn, logprobs, lengths, strict=True):
            finish: Finish = "stop" if ids[end - 1] in stops else "length"
            samples.append(Sample(prompt, tuple(ids[:end]), tuple(values[:end]), finish, self.version))
        return samples

    def close(self) -> None:
        pass


def _left_padded(prompts: Sequence[Prompt], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(p.ids) for p in prompts)
    gaps = [width - len(p.ids) for p in prompts]
    ids_BL = torch.tensor([[pad_id] * gap + list(p.ids) for gap, p in zip(gaps, prompts, strict=True)])
    mask_BL = torch.tensor([[0] * gap + [1] * len(p.ids) for gap, p in zip(gaps, prompts, strict=True)])
    return ids_BL, mask_BL


class EngineSampler:
    """Replies from serving engines, spread over the replicas.

    Each published version is exported, loaded on every replica as `learner-<run>-<nonce>-v<k>-<sha8>` and
    replaces the one before it, which is unloaded first and deleted after: an engine never meets a name twice,
    nor a name whose files are gone.
    """

    def __init__(self, trunk: Trunk, urls: Sequence[str], scratch_dir: Path, run_id: str) -> None:
        """`scratch_dir` must be one that the engines can read."""
        self.trunk = trunk
        self.urls = [url.rstrip("/") for url in urls]
        self.scratch_dir = scratch_dir.absolute()
        self.prefix = f"{PREFIX}{run_id}-{secrets.token_hex(2)}"
        self.version = 0
        self._served: dict[Role, tuple[str, Path]] = {}
        self._loading = threading.Lock()
        self._pool = ThreadPoolExecutor(STREAMS_PER_REPLICA * len(self.urls), thread_name_prefix="sampler")

    def clear(self) -> None:
        """Unloads and deletes what an earlier learner left behind when it was killed."""
        for url in self.urls:
            for name in _listed(url):
                if name.startswith(PREFIX):
                    _unload(url, name)
        for folder in self.scratch_dir.glob(f"{PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, role: Role) -> None:
        self.version += 1
        before = self._served.get(role)
        self._served[role] = self._export(role)
        self._load(*self._served[role])
        if before is not None:
            self._withdraw(*before)

    def _load(self, name: str, path: Path) -> None:
        """On every replica that answers. Raises: SamplingError when none took it."""
        failures = []
        with self._loading:  # several requests may notice at once that a replica forgot the name
            for url in self.urls:
                try:
                    if name not in vllm_adapters.listed(url):
                        vllm_adapters.load(url, name, path)
                except EngineError as e:
                    failures.append(str(e))
        if len(failures) == len(self.urls):
            raise SamplingError(f"no engine loaded {name}: {'; '.join(failures)}")

    def _export(self, role: Role) -> tuple[str, Path]:
        """The role's adapter in a folder of its own; the root reference is the policy's with every B zero."""
        draft = self.scratch_dir / f".draft-{self.prefix}"
        shutil.rmtree(draft, ignore_errors=True)
        export_adapter(self.trunk, Role.POLICY if role is Role.ROOT else role, draft)
        weights = draft / "adapter_model.safetensors"
        if role is Role.ROOT:
            _zero(weights)
        sha = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
        name = f"{self.prefix}-v{self.version}-{sha}"
        path = self.scratch_dir / name
        draft.rename(path)
        return name, path

    def _withdraw(self, name: str, path: Path) -> None:
        for url in self.urls:
            _unload(url, name)
        shutil.rmtree(path, ignore_errors=True)

    def sample(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        parts = self.stream(role, prompts, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed)
        return [sample for part in parts for sample in part]

    def stream(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[list[Sample]]:
        """A prompt's replies at a time; all prompts are on their way from the start."""
        if role not in self._served:
            self.publish(role)
        (name, path), version = self._served[role], self.version
        body = {
            "model": name,
            "n": n,
            "temperature": temperature,
            "top_p": 1.0,
            "max_tokens": max_tokens,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": list(self.trunk.encoder.eos_ids),
        }

        def ask(job: tuple[int, Prompt]) -> list[Sample]:
            i, prompt = job
            answer = self._post(i, body | {"prompt": list(prompt.ids), "seed": (seed + i) % 2**31}, path)
            return [_engine_sample(prompt, choice, version) for choice in answer["choices"]]

        yield from self._pool.map(ask, enumerate(prompts))

    def _post(self, i: int, body: dict[str, Any], path: Path) -> dict[str, Any]:
        """POST to replica i, then to the others; a replica that restarted gets the adapter back first."""
        failures = []
        for attempt in range(2):
            if attempt:
                self._load(str(body["model"]), path)
            for k in range(len(self.urls)):
                try:
                    return post_json(f"{self.urls[(i + k) % len(self.urls)]}/v1/completions", body)
                except SamplingError as e:
                    failures.append(str(e))
        raise SamplingError("; ".join(dict.fromkeys(failures)))

    def close(self) -> None:
        """Unloads what this run had loaded. The sampler cannot be used again."""
        self._pool.shutdown(wait=True)
        for name, path in self._served.values():
            self._withdraw(name, path)
        self._served.clear()


class MainSampler:
    """The main process's sampler, whose replies every process of the launch gets."""

    def __init__(self, sampler: Sampler | None) -> None:
        """`sampler` is None in the other processes."""
        self.sampler = sampler

    def publish(self, role: Role) -> None:
        from_main(lambda: self._own().publish(role))

    def sample(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        parts = self.stream(role, prompts, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed)
        return [sample for part in parts for sample in part]

    def stream(
        self, role: Role, prompts: Sequence[Prompt], *, n: int, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[list[Sample]]:
        parts: Iterator[list[Sample]] = iter(())
        if self.sampler is not None:
            parts = self.sampler.stream(
                role, prompts, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed
            )
        while (part := from_main(lambda: next(parts, None))) is not None:
            yield part

    def _own(self) -> Sampler:
        if self.sampler is None:
            raise SamplingError("only the main process has engines to ask")
        return self.sampler

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()


def _listed(url: str) -> frozenset[str]:
    """Raises: SamplingError."""
    try:
        return vllm_adapters.listed(url)
    except EngineError as e:
        raise SamplingError(str(e)) from e


def _unload(url: str, name: str) -> None:
    """A replica that is down or restarted does not know the name any more: that is what was wanted."""
    with suppress(EngineError):
        vllm_adapters.unload(url, name)


def _zero(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({n: t.zero_() if "lora_B" in n else t for n, t in load_file(weights).items()}, weights)


def _engine_sample(prompt: Prompt, choice: dict[str, Any], version: int) -> Sample:
    """Raises: SamplingError when the engine returned other ids than it was asked with, or no ids at all."""
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or logprobs is None or len(ids) != len(logprobs):
        raise SamplingError(
            "the engine returned no token ids or log-probabilities: is it vLLM 0.10 or newer?"
        )
    asked = choice.get("prompt_token_ids")
    if asked is not None and tuple(asked) != prompt.ids:
        raise SamplingError("the engine answered another prompt than the one it was sent")
    finish: Finish = "length" if choice["finish_reason"] == "length" else "stop"
    return Sample(prompt, tuple(ids), tuple(logprobs), finish, version)


def post_json(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Raises: SamplingError with the engine's own words."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
            return cast(dict[str, Any], json.load(response))
    except urllib.error.HTTPError as e:
        raise SamplingError(f"{url} answered {e.code}: {e.read(300).decode(errors='replace')}") from e
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise SamplingError(f"{url}: {e}") from e
