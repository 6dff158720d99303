"""What plays an exported student: one file a format, each with `load(path)`, which needs neither Ray nor this package.

Copy the one that fits to the device. `docs/numpy_runner.md` has the shortest, for MLPs.
"""
