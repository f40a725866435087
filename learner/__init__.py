"""From preference pairs to a reward model, from a reward model to a candidate adapter."""
