"""The steps of `rllib train`: read an experiment, check it, run it by Ray Tune and summarize the results."""
