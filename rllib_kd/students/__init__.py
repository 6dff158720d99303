"""Students: how large they are, and their first weights."""
