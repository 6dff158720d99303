"""Reading checkpoints without executing what they hold: pickles and archives as data, RLlib's and Tune's folders."""
