"""Cuts in two bases, with and without repair, against a peer: the tables of "Nearly free" in the README."""
