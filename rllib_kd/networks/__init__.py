"""What a Q-network is: RLlib's DQN module, layers in words, several MLPs in one batch of matrices."""
