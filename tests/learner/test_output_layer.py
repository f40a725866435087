"""Log-probabilities without logits: those of a plain log-softmax, and nothing large left behind."""

import pytest
import torch
from torch import Tensor, nn

from learner import output_layer
from learner.output_layer import OutputLayer

N, H, V = 7, 6, 23


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of tokens and vocabulary, the last ones not full."""
    monkeypatch.setattr(output_layer, "TOKENS_AT_ONCE", 3)
    monkeypatch.setattr(output_layer, "BLOCK", 5)


def a_layer(scale: float, softcap: float | None, bias: bool) -> tuple[OutputLayer, Tensor, Tensor]:
    """The layer, hidden_NH and ids_N; logits of several nats, so that softmax is far from even."""
    torch.manual_seed(0)
    linear = nn.Linear(H, V, bias=bias)
    linear.weight.data.mul_(8)
    hidden_NH = torch.randn(N, H, requires_grad=True)
    return OutputLayer(linear.requires_grad_(False), scale, softcap), hidden_NH, torch.arange(N) * 3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("scale", "softcap", "bias"), [(1.0, None, False), (0.5, None, True), (1.0, 3.0, False)]
)
def test_logprobs_and_gradient_are_those_of_a_plain_log_softmax(
    scale: float, softcap: float | None, bias: bool, temperature: float
) -> None:
    """Scale, cap and temperature included; the gradient is formed in the forward pass."""
    layer, hidden_NH, ids_N = a_layer(scale, softcap, bias)
    pull_N = torch.linspace(-1, 2, N)
    plain_N = (layer.logits(hidden_NH) / temperature).log_softmax(1)[torch.arange(N), ids_N]
    (expected_NH,) = torch.autograd.grad((plain_N * pull_N).sum(), hidden_NH)
    found_N = layer.logprobs(hidden_NH, ids_N, temperature)
    (gradient_NH,) = torch.autograd.grad((found_N * pull_N).sum(), hidden_NH)
    torch.testing.assert_close(found_N, plain_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient_NH, expected_NH, atol=1e-5, rtol=1e-5)


def test_temperature_divides_logits() -> None:
    """Logits (2, 0) at τ = 2: log σ(1) = −0.313262. Dividing log-probabilities instead would give −0.063."""
    linear = nn.Linear(1, 2, bias=False)
    linear.weight.data = torch.tensor([[2.0], [0.0]])
    found = OutputLayer(linear).logprobs(torch.ones(1, 1), torch.tensor([0]), 2.0)
    assert float(found) == pytest.approx(-0.313262, abs=1e-6)


def test_an_unlikely_token_keeps_its_log_probability() -> None:
    """200 nats below the best: its probability is 0 in float32, its log-probability is not."""
    linear = nn.Linear(1, V, bias=False)
    linear.weight.data = torch.zeros(V, 1)
    linear.weight.data[-1] = 200.0
    found = OutputLayer(linear).logprobs(torch.ones(1, 1), torch.tensor([0]), 1.0)
    assert float(found) == pytest.approx(-200.0)


def test_a_vector_per_token_is_all_that_is_kept() -> None:
    """Memory between forward and backward grows with the hidden size, not with the vocabulary."""
    layer, hidden_NH, ids_N = a_layer(1.0, None, False)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer.logprobs(hidden_NH, ids_N, 1.0)
    assert sum(kept) == N * H
