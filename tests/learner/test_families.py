"""Any model: the same numbers as the model's own forward pass for every architecture, or a clear refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.batches import Prompt, Sample
from learner.compatibility import check_forward, context
from learner.errors import DataError, ModelError
from learner.models import LanguageActor, Role, Trunk, base_hash, export_adapter, linear_modules, load_trunk
from learner.sampling import LocalSampler
from learner.train_policy import PPO, advance, gather, start
from ops import store
from tests.engines import byte_tokenizer
from tests.learner.families import FAMILIES, make_family, make_model

ONE_STEP = PPO(epochs=1, minibatches=1, policy_lr=0.01, warm_up_updates=5, max_tokens=8)


QUICK = ("gemma2", "phi3")
"""Between them: soft-capped scores and logits, windows, scaled and tied embeddings, fused projections."""


def samples() -> list[Sample]:
    """Different lengths, longer than the sliding windows; a prompt is a single token, three share another."""
    shapes = ((9, 4), (1, 2), (3, 12), (9, 6), (9, 5))
    return [Sample(Prompt(str(p), tuple(range(20, 20 + p))), tuple(range(60, 60 + r))) for p, r in shapes]


def disturbed(base_dir: Path) -> Trunk:
    """A trunk whose policy is no longer the base."""
    trunk = load_trunk(base_dir, rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trunk.parameters(Role.POLICY):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return trunk


def plain_model(base_dir: Path, adapter_dir: Path) -> Any:
    """The model as anybody else would load it: unfused attention, peft's own reader of adapter files."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_dir, attn_implementation="eager", dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(adapter_dir), is_trainable=True).eval()


def plain_logprobs(model: Any, sample: Sample) -> Tensor:
    """One sequence through the whole model, log-softmax over everything: logprobs_T."""
    ids = torch.tensor([[*sample.prompt.ids, *sample.ids]])
    log_LV = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(sample.prompt.ids) - 1
    return log_LV[start:-1].gather(1, torch.tensor(sample.ids)[:, None]).squeeze(1)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_a_family_trains_on_its_own_numbers(name: str, tmp_path: Path) -> None:
    """Response log-probabilities (padded and alone) and LoRA gradients are those of the whole model with its
    exported adapter; the old policy is the new one before the first step; a PPO step moves LoRA only."""
    base_dir = make_family(tmp_path / "base", name)
    trunk = disturbed(base_dir)
    assert linear_modules(trunk.causal_lm) == FAMILIES[name][2]
    actor, rows = LanguageActor(trunk), samples()
    adapter = export_adapter(trunk, Role.POLICY, tmp_path / "adapter")
    store.check(adapter, base_dir=base_dir)
    plain = plain_model(base_dir, adapter)

    expected = [plain_logprobs(plain, row) for row in rows]
    found_BT, _ = actor.forward(rows)
    for b, row in enumerate(rows):
        alone_BT, _ = actor.forward([row])
        assert found_BT[b, : len(row.ids)].tolist() == pytest.approx(expected[b].tolist(), abs=1e-4)
        assert alone_BT[0].tolist() == pytest.approx(expected[b].tolist(), abs=1e-4)

    found_BT.sum().backward()
    torch.cat(expected).sum().backward()
    learned = [(n, p.grad) for n, p in plain.named_parameters() if p.requires_grad]
    theirs = {n.replace(".default.", ".policy."): gradient for n, gradient in learned}
    ours = {n: p.grad for n, p in trunk.model.named_parameters() if p.requires_grad and ".policy." in n}
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for n, gradient in ours.items():
        assert torch.allclose(gradient, theirs[n], atol=1e-4, rtol=1e-3), n

    before, policy = base_hash(trunk), [p.detach().clone() for p in actor.policy_parameters()]
    drawn = LocalSampler(trunk).sample(
        Role.POLICY, [row.prompt for row in rows], n=2, temperature=1.0, max_tokens=8, seed=0
    )
    experience = gather(actor, drawn, lambda s: torch.arange(len(s)).float(), ONE_STEP)
    assert torch.allclose(experience.old_BT * experience.mask_BT, experience.sampler_BT, atol=1e-4)
    metrics = advance(actor, experience, ONE_STEP, start(actor, ONE_STEP))
    assert metrics.ratio_before == pytest.approx(1.0, abs=1e-5)
    assert metrics.optimizer_steps == 1
    assert not any(torch.equal(a, b) for a, b in zip(policy, actor.policy_parameters(), strict=True))
    assert base_hash(trunk) == before


def spoil(base_dir: Path, file: str, **changes: Any) -> None:
    """Other values in one of the directory's JSON files; None takes a key out."""
    path = base_dir / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    kept = {k: v for k, v in (content | changes).items() if v is not None}
    path.write_text(json.dumps(kept))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_model(tmp_path / "base", "LlamaConfig")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config.json", {"is_encoder_decoder": True}, "encoder-decoder model: name a decoder-only one"),
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, "name the unquantised checkpoint"),
        ("config.json", {"num_local_experts": 8}, "mixture of experts.*name a dense model"),
        ("config.json", {"model_type": "ours", "auto_map": {"AutoConfig": "a.C"}}, "'ours'.*running code"),
        ("config.json", {"num_hidden_layers": 3}, "lacks weights .*layers.2.*they would be random"),
        ("generation_config.json", {"eos_token_id": [2, 999]}, "token 999 is beyond its vocabulary of 272"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_to_do(
    llama: Path, file: str, changes: dict[str, Any], words: str
) -> None:
    """Before any training, and before code that came with a model could run."""
    spoil(llama, file, **changes)
    with pytest.raises(ModelError, match=words):
        load_trunk(llama, rank=4, seed=0)


def test_a_base_without_chat_template_is_refused(llama: Path) -> None:
    (llama / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template: name a chat \(instruct\) variant"):
        load_trunk(llama, rank=4, seed=0)


def test_a_base_that_never_ends_is_refused(tmp_path: Path) -> None:
    """No end token in tokenizer, configuration or template: every reply would run to its limit."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    base_dir = make_model(tmp_path, "LlamaConfig", tokenizer=tokenizer, eos_token_id=None)
    with pytest.raises(ModelError, match="never end: set eos_token"):
        load_trunk(base_dir, rank=4, seed=0)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Tokens without a row of weights would be an index error in the middle of a run."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(20)])
    with pytest.raises(ModelError, match="tokenizer of 282 tokens and 272 rows"):
        load_trunk(make_model(tmp_path, "LlamaConfig", tokenizer=tokenizer), rank=4, seed=0)


def test_logits_made_in_an_unknown_way_are_refused(llama: Path) -> None:
    """The next architecture may scale its logits under another name, or let tokens see what follows: its own
    forward pass tells."""
    trunk = load_trunk(llama, rank=4, seed=0)
    check_forward(trunk.causal_lm, lambda ids_BL: trunk.logits(trunk.states(ids_BL)))
    with pytest.raises(ModelError, match="LlamaForCausalLM computes its logits in a way"):
        check_forward(trunk.causal_lm, lambda ids_BL: trunk.logits(trunk.states(ids_BL)) / 8)
    with pytest.raises(ModelError, match="cannot be trained here"):
        check_forward(trunk.causal_lm, lambda ids_BL: trunk.logits(trunk.states(ids_BL.flip(1))).flip(1))


def test_a_reply_ends_as_the_chat_template_ends_it(tmp_path: Path) -> None:
    """Gemma's tokenizer names <eos>, its chats end with another token: the reward model must see that one,
    and both stop a sample."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens[3:], "<turn>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "<turn>\n")
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    trunk = load_trunk(make_model(tmp_path, "LlamaConfig", tokenizer=tokenizer), rank=4, seed=0)
    assert trunk.encoder.eos_ids == (turn, 2)
    prompt = trunk.encoder.prompt("0", [{"role": "user", "content": "Hi"}])
    assert trunk.encoder.reply(prompt, "Yes").ids[-1] == turn
    with torch.no_grad():
        trunk.lm_head.weight[turn] = trunk.lm_head.weight[2] = 0.0
        trunk.lm_head.weight.mul_(0.0)  # every token alike: 1 in 136 ends a reply
    drawn = LocalSampler(trunk).sample(Role.ROOT, [prompt], n=32, temperature=1.0, max_tokens=50, seed=0)
    assert {s.ids[-1] for s in drawn if s.finish == "stop"} == {turn, 2}
    assert not any({turn, 2} & set(s.ids[:-1]) for s in drawn)


def test_a_prompt_that_the_template_refuses_is_bad_data(llama: Path) -> None:
    """Gemma's template raises for a system message: that is the data's fault, and says so."""
    trunk = load_trunk(llama, rank=4, seed=0)
    trunk.encoder.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match="refuses it: no system role"):
        trunk.encoder.prompt("0" * 32, [{"role": "system", "content": "Be kind."}])


def test_sequences_stay_within_the_positions_of_the_model() -> None:
    """Phi's long rotary embedding turns every position differently past its original context: one longer
    sequence would change the others in its batch."""
    from transformers import LlamaConfig, Phi3Config

    assert context(LlamaConfig(max_position_embeddings=512), 1024) == 512
    assert context(LlamaConfig(max_position_embeddings=4096), 1024) == 1024
    factors = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    shape = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 2048, "pad_token_id": 0}
    long = {"original_max_position_embeddings": 256, "rope_parameters": {"rope_type": "longrope"} | factors}
    assert context(Phi3Config(**shape, **long), 1024) == 256
