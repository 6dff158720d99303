"""Certificates that a student keeps a share of its teacher's return, tested on fresh episodes."""
