"""Students: their sizes and their first weights."""
