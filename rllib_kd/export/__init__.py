"""Students as files that run without Ray and without this package."""
