"""Q-networks: RLlib's DQN module, described layers, several MLPs in one batch of matrices."""
