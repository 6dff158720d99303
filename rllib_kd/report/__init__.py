"""What comparisons look like: tables, plots, one HTML page."""
