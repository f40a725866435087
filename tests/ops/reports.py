"""An evaluation report that passes every gate, for tests that need one."""

from ops.evaluation import EvalReport

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
)
