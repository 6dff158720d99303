"""DistillDQN: the settings of a distillation, and who does what, when."""
