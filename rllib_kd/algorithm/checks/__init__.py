"""Checks of settings, before anything starts. None touches a file or changes the config."""
