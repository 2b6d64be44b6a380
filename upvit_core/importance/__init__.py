"""Scores: one criterion per file, all called the same way."""
