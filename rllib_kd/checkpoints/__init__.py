"""Reading checkpoints without executing what they hold: pickles as data, and RLlib's layout of files."""
