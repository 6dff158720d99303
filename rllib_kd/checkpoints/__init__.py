"""Reading and writing checkpoints; those of others are read as data, and nothing in them is executed."""
