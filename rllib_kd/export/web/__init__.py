"""A student as a web page in one file."""
