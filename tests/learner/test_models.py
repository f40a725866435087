"""One trunk, four roles: what each adapter changes, and what nothing ever changes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner.batches import Batch, Prompt, Sample
from learner.errors import ModelError
from learner.models import (
    LanguageActor,
    Role,
    Trunk,
    base_hash,
    does_nothing,
    export_adapter,
    linear_modules,
    load_adapter,
    load_trunk,
    pooled_states,
)
from ops import store


def samples_for(prompts: list[Prompt]) -> list[Sample]:
    return [Sample(p, tuple(range(10 + i, 14 + 2 * i))) for i, p in enumerate(prompts)]


def disturb(trunk: Trunk, role: Role, seed: int = 1) -> None:
    """Weights that make a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trunk.parameters(role):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def logprobs(trunk: Trunk, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return LanguageActor(trunk).forward(samples)[0]


def plain_logprobs(trunk: Trunk, sample: Sample, temperature: float) -> list[float]:
    """One sequence at a time through the whole model, log-softmax over everything."""
    ids = torch.tensor([[*sample.prompt.ids, *sample.ids]])
    with torch.no_grad():
        log_LV = (trunk.model(input_ids=ids).logits[0].float() / temperature).log_softmax(-1)
    start = len(sample.prompt.ids)
    return [float(log_LV[start + t - 1, token]) for t, token in enumerate(sample.ids)]


def test_pooled_states_are_of_the_reply_alone() -> None:
    """Row 0: prompt of 1, reply of 2, one of padding; row 1: prompt of 2, reply of 2. State l: (l, 10·l)."""
    batch = Batch(torch.zeros(2, 4, dtype=torch.long), torch.tensor([1, 2]), torch.tensor([2, 2]))
    hidden_BLH = torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]).repeat(2, 1, 1)
    assert pooled_states(hidden_BLH, batch, "last").tolist() == [[2.0, 20.0], [3.0, 30.0]]
    assert pooled_states(hidden_BLH, batch, "mean").tolist() == [[1.5, 15.0], [2.5, 25.0]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_each_sequence_alone(
    trunk: Trunk, prompts: list[Prompt], temperature: float
) -> None:
    """Padding, batching and the response-only output layer change nothing: logits[t−1] predict token t."""
    disturb(trunk, Role.POLICY)
    samples = samples_for(prompts)
    with torch.no_grad():
        found_BT, _ = LanguageActor(trunk, temperature).forward(samples)
        for b, sample in enumerate(samples):
            expected = plain_logprobs(trunk, sample, temperature)
            assert found_BT[b, : len(sample.ids)].tolist() == pytest.approx(expected, abs=1e-4)
            assert not found_BT[b, len(sample.ids) :].any()


def test_packed_samples_get_the_states_and_gradients_of_their_own(
    fresh_trunk: Callable[[], Trunk], prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies that share a row see their own prompt and themselves, at their own positions."""
    samples = [
        Sample(prompt, tuple(range(20 + i, 24 + 3 * i + k)))
        for i, prompt in enumerate(prompts[:3])
        for k in range(4)
    ]

    def found() -> tuple[Tensor, list[Tensor]]:
        trunk = fresh_trunk()
        disturb(trunk, Role.POLICY)
        logprobs_BT, _ = LanguageActor(trunk).forward(samples)
        (logprobs_BT * torch.linspace(-1, 1, len(samples))[:, None]).sum().backward()  # type: ignore[no-untyped-call]
        return logprobs_BT.detach(), [p.grad.clone() for p in trunk.parameters(Role.POLICY)]

    packed_BT, packed_gradients = found()
    monkeypatch.setattr(Trunk, "packs", lambda self, length: False)
    alone_BT, gradients = found()
    torch.testing.assert_close(packed_BT, alone_BT, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed_gradients, gradients, atol=1e-5, rtol=1e-4)


def test_a_real_token_that_equals_the_pad_id_counts(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Masks come from lengths: a sampled pad token has a log-probability like any other."""
    pad = trunk.pad_id
    short, long = Sample(prompts[0], (20, pad)), Sample(prompts[1], (20, 21, 22, 23))
    found_BT = logprobs(trunk, [short, long])
    assert float(found_BT[0, 1]) == pytest.approx(plain_logprobs(trunk, short, 1.0)[1], abs=1e-4)
    assert float(found_BT[0, 1]) < 0


def test_reference_is_the_base_model_bit_by_bit(
    trunk: Trunk, fresh_trunk: Callable[[], Trunk], prompts: list[Prompt]
) -> None:
    """Adapters off equals a model that never had any, however far the policy has moved."""
    samples = samples_for(prompts)
    disturb(trunk, Role.POLICY)
    with trunk.acting(Role.ROOT):
        reference_BT = logprobs(trunk, samples)
    assert torch.equal(reference_BT, logprobs(fresh_trunk(), samples))
    assert not torch.equal(reference_BT, logprobs(trunk, samples))


def test_roles_do_not_touch_each_other(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Policy and reward adapter lie on one trunk and compute apart; leaving a role restores the policy."""
    samples = samples_for(prompts)
    trunk.add(Role.REWARD, 4, seed=5)
    disturb(trunk, Role.POLICY)
    policy_BT = logprobs(trunk, samples)
    disturb(trunk, Role.REWARD, seed=2)
    with trunk.acting(Role.REWARD):
        reward_BT = logprobs(trunk, samples)
    assert torch.equal(policy_BT, logprobs(trunk, samples))
    assert not torch.allclose(policy_BT, reward_BT, atol=1e-3)


def test_values_start_at_zero_and_send_no_gradient_into_the_trunk(
    trunk: Trunk, prompts: list[Prompt]
) -> None:
    """The value head sits on detached states: fitting values cannot move the policy."""
    actor = LanguageActor(trunk)
    logprobs_BT, values_BT = actor.forward(samples_for(prompts))
    assert not values_BT.any()
    values_BT.sum().backward()
    assert all(p.grad is None for p in actor.policy_parameters())
    assert all(p.grad is not None for p in actor.value_parameters())
    assert logprobs_BT.requires_grad


def test_features_are_what_the_value_head_reads(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Warming the head up on stored features fits the same function that `forward` evaluates."""
    actor = LanguageActor(trunk)
    torch.nn.init.normal_(actor.value_head.weight, generator=torch.Generator().manual_seed(0))
    samples = samples_for(prompts)
    with torch.no_grad():
        direct_BT = actor.forward(samples)[1]
        stored_BT = actor.value_head(actor.features(samples)).squeeze(-1)
    mask_BT = direct_BT != 0
    assert torch.allclose(direct_BT[mask_BT], stored_BT[mask_BT], atol=1e-5)


def test_an_exported_adapter_computes_the_same(
    trunk: Trunk, fresh_trunk: Callable[[], Trunk], prompts: list[Prompt], tmp_path: Path
) -> None:
    """Export and reload give the same log-probabilities: what is served is what was trained."""
    samples = samples_for(prompts)
    disturb(trunk, Role.POLICY)
    export_adapter(trunk, Role.POLICY, tmp_path / "adapter")
    other = fresh_trunk()
    load_adapter(other, Role.POLICY, tmp_path / "adapter")
    assert torch.allclose(logprobs(trunk, samples), logprobs(other, samples), atol=1e-6)


def test_the_store_takes_an_exported_adapter(trunk: Trunk, tiny_base: Path, tmp_path: Path) -> None:
    """The registry's checks (names, shapes, plain LoRA, fits the base) hold for what the learner writes."""
    export_adapter(trunk, Role.POLICY, tmp_path / "adapter")
    sha, path = store.put(tmp_path / "adapter", tmp_path / "store", base_dir=tiny_base)
    store.verify(path, sha)


def test_equal_weights_export_to_equal_bytes(trunk: Trunk, tmp_path: Path) -> None:
    """Adapter names carry a content hash: the same weights must have one name."""
    first = store.digest(export_adapter(trunk, Role.POLICY, tmp_path / "a"))
    assert store.digest(export_adapter(trunk, Role.POLICY, tmp_path / "b")) == first
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_identity_adapter_is_recognised(trunk: Trunk, tiny_base: Path, tmp_path: Path) -> None:
    """Starting from it would be starting from two zero matrices, where no gradient flows."""
    assert does_nothing(store.identity_adapter(tiny_base, tmp_path / "identity"))
    disturb(trunk, Role.POLICY)
    assert not does_nothing(export_adapter(trunk, Role.POLICY, tmp_path / "real"))


def test_lora_sits_on_every_linear_layer_but_the_output(trunk: Trunk) -> None:
    """Found by type, so any architecture works; asking again with adapters in place gives the same."""
    expected = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert linear_modules(trunk.causal_lm) == expected


def test_training_a_step_leaves_the_base_weights_alone(trunk: Trunk, prompts: list[Prompt]) -> None:
    """Only LoRA and head parameters move."""
    before = base_hash(trunk)
    actor = LanguageActor(trunk)
    optimizer = torch.optim.Adam([*actor.policy_parameters(), *actor.value_parameters()], lr=0.1)
    logprobs_BT, values_BT = actor.forward(samples_for(prompts))
    (logprobs_BT.sum() + (values_BT - 1).square().sum()).backward()
    optimizer.step()
    assert base_hash(trunk) == before
    assert not torch.equal(logprobs(trunk, samples_for(prompts)), logprobs_BT)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """The message names the folder and what it lacks."""
    with pytest.raises(ModelError, match=r"no Hugging Face model directory: it has no config\.json"):
        load_trunk(tmp_path, rank=4, seed=0)


def test_an_adapter_of_another_model_is_refused(trunk: Trunk, tmp_path: Path) -> None:
    """Shapes are compared before anything is overwritten."""
    folder = export_adapter(trunk, Role.POLICY, tmp_path / "adapter")
    from safetensors.torch import load_file, save_file

    weights = {n: t[:, :-1].contiguous() for n, t in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(trunk, Role.PARENT, folder)


def test_a_folder_that_is_no_adapter_is_refused(trunk: Trunk, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no LoRA adapter"):
        load_adapter(trunk, Role.PARENT, tmp_path)
