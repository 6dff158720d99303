"""What `rllib train` does: an experiment is read, checked, run by Ray Tune and summed up."""
