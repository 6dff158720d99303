"""DistillDQN: its config, its training loop, and the parts of a run."""
