"""Teachers: where they come from, and what they can do. One file an origin."""
