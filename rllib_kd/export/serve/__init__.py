"""A policy behind HTTP, as an application of Ray Serve."""
