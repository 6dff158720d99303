"""EnvRunners, which act with the behaviour policy, label each state with the teacher's Q-values, and send columns."""
