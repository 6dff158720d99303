"""One runner for each format of an exported student; none imports this package."""
