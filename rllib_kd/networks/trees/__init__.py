"""Decision trees as networks: from observations to Q-values by comparisons alone."""
