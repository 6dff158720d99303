"""Environments: how they are made, Atari's preprocessing, videos."""
