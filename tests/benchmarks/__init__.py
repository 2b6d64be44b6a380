"""Scripts that print the tables of the README; ratios are measured in one run. Never part of the test suite."""
