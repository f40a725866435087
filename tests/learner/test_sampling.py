"""One contract for both samplers, checked against the trainer; and how in-training adapters come and go."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from learner.batches import Prompt, Sample, padded, response_mask
from learner.errors import SamplingError
from learner.models import LanguageActor, Role, Trunk
from learner.sampling import EngineSampler, LocalSampler, Sampler
from learner.train_policy import check_sampler, forward_all, sampler_kl
from ops import vllm_adapters
from tests.engines import RunningEngine


@pytest.fixture(
    params=[
        "local",
        pytest.param("transformers", marks=pytest.mark.slow),
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow]),
    ]
)
def sampler(request: pytest.FixtureRequest, trunk: Trunk, tmp_path: Path) -> Iterator[Sampler]:
    """The local sampler; the engine sampler on the shipped engine; the engine sampler on a real vLLM."""
    if request.param == "local":
        yield LocalSampler(trunk)
        return
    engine: RunningEngine = request.getfixturevalue(f"{request.param}_engine")
    opened = EngineSampler(trunk, [engine.url], tmp_path / "scratch", "run-0001")
    yield opened
    opened.close()


def move(trunk: Trunk, seed: int = 1) -> None:
    """A policy that differs from the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trunk.parameters(Role.POLICY):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def draw(
    sampler: Sampler, role: Role, prompts: list[Prompt], temperature: float = 1.0, n: int = 3, seed: int = 0
) -> list[Sample]:
    return sampler.sample(role, prompts, n=n, temperature=temperature, max_tokens=12, seed=seed)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("role", [Role.POLICY, Role.ROOT])
def test_sampler_and_trainer_agree_on_every_token(
    sampler: Sampler, trunk: Trunk, prompts: list[Prompt], role: Role, temperature: float
) -> None:
    """Ids are the sampled ones, log-probabilities the trainer's at that temperature: KL within rounding."""
    move(trunk)
    sampler.publish(role)
    samples = draw(sampler, role, prompts, temperature)
    assert [s.prompt for s in samples] == [p for p in prompts for _ in range(3)]
    assert all(len(s.ids) == len(s.logprobs) for s in samples)
    actor = LanguageActor(trunk, temperature)
    with torch.no_grad(), trunk.acting(role):
        trainer_BT, _ = forward_all(actor, samples, 10_000)
    sampled_BT, mask_BT = padded([s.logprobs for s in samples]), response_mask(samples)
    check_sampler(trainer_BT, sampled_BT, mask_BT)
    assert sampler_kl(trainer_BT, sampled_BT, mask_BT) < 1e-6
    assert float(((trainer_BT - sampled_BT) * mask_BT).abs().max()) < 1e-2


def test_replies_end_with_their_end_token_or_are_cut(
    sampler: Sampler, trunk: Trunk, prompts: list[Prompt]
) -> None:
    """`stop` exactly when the last id is an end-of-text id, and no such id before it."""
    with torch.no_grad():
        trunk.parameters(Role.POLICY)[1].add_(0.05)
    sampler.publish(Role.POLICY)
    stops = set(trunk.encoder.eos_ids)
    samples = sampler.sample(Role.POLICY, prompts, n=16, temperature=1.5, max_tokens=40, seed=1)
    assert {s.finish for s in samples} == {"stop", "length"}
    for s in samples:
        assert (s.ids[-1] in stops) == (s.finish == "stop")
        assert not stops & set(s.ids[:-1])
        assert s.finish == "stop" or len(s.ids) == 40


def test_replies_come_in_order_however_they_arrive(
    sampler: Sampler, trunk: Trunk, prompts: list[Prompt]
) -> None:
    """A caller may work on the first while the last is drawn, and lose nothing by it."""
    sampler.publish(Role.POLICY)
    parts = sampler.stream(Role.POLICY, prompts, n=3, temperature=1.0, max_tokens=12, seed=0)
    assert [s.prompt for part in parts for s in part] == [p for p in prompts for _ in range(3)]


def test_a_published_policy_is_the_one_that_answers(
    sampler: Sampler, trunk: Trunk, prompts: list[Prompt]
) -> None:
    """After an update and `publish`, replies come from the new weights and carry a new version."""
    sampler.publish(Role.POLICY)
    before = draw(sampler, Role.POLICY, prompts)
    move(trunk)
    sampler.publish(Role.POLICY)
    after = draw(sampler, Role.POLICY, prompts)
    assert after[0].version > before[0].version
    assert [s.ids for s in after] != [s.ids for s in before]


def test_the_same_seed_draws_the_same_replies(trunk: Trunk, prompts: list[Prompt]) -> None:
    """What a resumed run rests on; another seed draws others."""
    sampler = LocalSampler(trunk)
    first = draw(sampler, Role.POLICY, prompts)
    assert draw(sampler, Role.POLICY, prompts) == first
    assert draw(sampler, Role.POLICY, prompts, seed=1) != first


@pytest.fixture
def served(transformers_engine: RunningEngine) -> Callable[[], set[str]]:
    """The learner's adapters that the engine serves now."""
    return lambda: {n for n in vllm_adapters.listed(transformers_engine.url) if n.startswith("learner-")}


def test_versions_replace_each_other_under_new_names(
    trunk: Trunk,
    prompts: list[Prompt],
    transformers_engine: RunningEngine,
    served: Callable[[], set[str]],
    tmp_path: Path,
) -> None:
    """Never two versions of a role at once, never a name twice, nothing left after closing."""
    sampler = EngineSampler(trunk, [transformers_engine.url], tmp_path, "run-0007")
    names = []
    for seed in range(3):
        move(trunk, seed)
        sampler.publish(Role.POLICY)
        (name,) = served()
        names.append(name)
        assert name.startswith("learner-run-0007-")
        assert [p.name for p in tmp_path.iterdir()] == [name]
    assert len(set(names)) == 3
    sampler.close()
    assert served() == set()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_learner_left_behind_is_cleared(
    trunk: Trunk, transformers_engine: RunningEngine, served: Callable[[], set[str]], tmp_path: Path
) -> None:
    EngineSampler(trunk, [transformers_engine.url], tmp_path, "run-0001").publish(Role.POLICY)
    assert len(served()) == 1
    sampler = EngineSampler(trunk, [transformers_engine.url], tmp_path, "run-0001")
    sampler.clear()
    assert served() == set()
    assert list(tmp_path.iterdir()) == []
    assert transformers_engine.identity in vllm_adapters.listed(transformers_engine.url)
    sampler.close()


def test_a_replica_that_forgot_the_adapter_gets_it_back(
    trunk: Trunk, prompts: list[Prompt], transformers_engine: RunningEngine, tmp_path: Path
) -> None:
    """An engine restart forgets run-time adapters; the step goes on."""
    sampler = EngineSampler(trunk, [transformers_engine.url], tmp_path, "run-0001")
    sampler.publish(Role.POLICY)
    for name in vllm_adapters.listed(transformers_engine.url):
        if name.startswith("learner-"):
            vllm_adapters.unload(transformers_engine.url, name)
    assert len(draw(sampler, Role.POLICY, prompts)) == 3 * len(prompts)
    sampler.close()


def test_a_dead_replica_leaves_the_work_to_the_others(
    trunk: Trunk, prompts: list[Prompt], transformers_engine: RunningEngine, free_port: int, tmp_path: Path
) -> None:
    sampler = EngineSampler(
        trunk, [f"http://127.0.0.1:{free_port}", transformers_engine.url], tmp_path, "run-0001"
    )
    sampler.publish(Role.POLICY)
    assert len(draw(sampler, Role.POLICY, prompts)) == 3 * len(prompts)
    sampler.close()


def test_without_any_engine_sampling_fails_quickly_and_says_so(
    trunk: Trunk, prompts: list[Prompt], free_port: int, tmp_path: Path
) -> None:
    begun = time.monotonic()
    sampler = EngineSampler(trunk, [f"http://127.0.0.1:{free_port}"], tmp_path, "run-0001")
    with pytest.raises(SamplingError, match=str(free_port)):
        draw(sampler, Role.POLICY, prompts)
    sampler.close()
    assert time.monotonic() - begun < 5
