"""Recorded observations, labelled by a teacher: files of them, and what reads and writes these."""
