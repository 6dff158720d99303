"""Reports of comparisons: tables, plots, one HTML page."""
