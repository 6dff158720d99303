"""Seeds of evaluation episodes."""

from __future__ import annotations

#: Seed of the first episode that evaluates a student, far from those of its training.
FRESH_SEED = 1_000_000

#: The same on the way there, while a student of a sweep is still trained.
ON_THE_WAY_SEED = 2_000_000

#: Seed of the first validation episode: episodes by which students are chosen.
VALIDATION_SEED = 1_500_000_000

#: The validation episode from which on a teacher is compared with a random policy before anything is trained: beyond
#: those by which students are chosen.
FIRST_CHECK = 100_000

#: Seed of the first episode of a certificate, by which nothing was chosen.
CERTIFICATE_SEED = 1_750_000_000


def episode_seeds(num_episodes: int, seed: int) -> range:
    """Return one seed for each episode.

    Args:
        num_episodes: ≥ 1.
        seed: seed of the first episode, ≥ 0; the others count up from it.

    Raises:
        ValueError: a number is too small.
    """
    if num_episodes < 1:
        raise ValueError(f"`num_episodes` must be at least 1, got {num_episodes}.")
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")
    return range(seed, seed + num_episodes)
