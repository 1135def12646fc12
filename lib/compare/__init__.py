"""Comparisons: sweeps, the table of one, and what differs between two runs."""
