"""Seeds of evaluation episodes."""

from __future__ import annotations

from rllib_kd.numeric import check_integer

#: Seed of the first episode that evaluates a student, far from those of its training.
FRESH_SEED = 1_000_000

#: The same on the way there, while a student of a sweep is still trained.
ON_THE_WAY_SEED = 2_000_000

#: The same of the episodes by which one of a sweep's finished students is recommended. Comparisons play others: on
#: these, the returns of the chosen one are too high.
SWEEP_SEED = 1_250_000_000

#: Seed of the first validation episode: episodes by which students are chosen.
VALIDATION_SEED = 1_500_000_000

#: The validation episode from which on a teacher is compared with a random policy before anything is trained: beyond
#: those by which students are chosen.
FIRST_CHECKED_EPISODE = 100_000

#: Seed of the first episode of a certificate, by which nothing was chosen.
CERTIFICATE_SEED = 1_750_000_000


def episode_seeds(num_episodes: int, seed: int) -> range:
    """Return one seed for each episode.

    Args:
        num_episodes: ≥ 1.
        seed: seed of the first episode, ≥ 0; the others count up from it.

    Raises:
        ValueError: a number is too small, or no integer.
    """
    check_integer("num_episodes", num_episodes, low=1)
    check_integer("seed", seed, low=0)
    return range(seed, seed + num_episodes)
