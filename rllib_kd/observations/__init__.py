"""From what an environment shows to what a network takes."""
