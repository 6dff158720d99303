"""Ray's worker processes, forked from one that has imported the package already."""
