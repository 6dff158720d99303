"""Students as C99: one header without dependencies, in 32-bit floats or in integers."""
