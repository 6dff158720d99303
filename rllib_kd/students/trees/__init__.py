"""Students that are decision trees: their settings, how they are grown, and how they read as rules."""
