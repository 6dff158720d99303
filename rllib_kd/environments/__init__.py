"""Environments: making them, Atari's preprocessing, films."""
