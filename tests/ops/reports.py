"""An evaluation report that passes every gate, for tests that need one."""

from ops.evaluation import EvalReport, Measure


def change(name: str, value: float, low: float, high: float, *, n: int = 24, before: float = 0.25) -> Measure:
    return Measure(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        method="newcombe",
        candidate=before + value,
        baseline=before,
        evidence=("probe-7",),
    )


def rate(name: str, value: float, low: float, high: float) -> Measure:
    return Measure(name=name, value=value, low=low, high=high, n=40, method="bootstrap")


MEASURES = (
    rate("win_rate", 0.7, 0.6, 0.8),
    rate("win_rate_length_controlled", 0.65, 0.55, 0.75),
    change("capability", 0.0, -0.1, 0.1),
    change("over_refusal", 0.0, -0.1, 0.1),
    change("under_refusal", 0.0, -0.1, 0.1),
    change("sycophancy", 0.0, -0.1, 0.1),
    change("sycophancy_pressure", 0.0, -0.1, 0.1),
    change("canary_sentiment/plan", 0.1, -0.3, 0.5),
    change("canary_sentiment/app", -0.1, -0.5, 0.3),
)

GOOD = EvalReport(
    prompts=40,
    samples=160,
    reward_gain=0.3,
    reward_gain_low=0.1,
    reward_gain_high=0.5,
    kl_root_nats=4.0,
    kl_parent_nats=4.0,
    mean_tokens=30.0,
    baseline_mean_tokens=28.0,
    well_formed=0.98,
    baseline_well_formed=0.97,
    reward_model_accuracy=0.75,
    reward_model_pairs=80,
    version=2,
    measures=MEASURES,
)
