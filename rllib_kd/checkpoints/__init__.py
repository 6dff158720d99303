"""Read and write checkpoints; untrusted ones are read as data, and no code in them is run."""
