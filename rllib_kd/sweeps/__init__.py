"""Sweeps by Ray Tune: how small can the student be?"""
