"""Which adapter serves whom, and why: registry, gates, rollouts, the engine's adapters, metrics."""
