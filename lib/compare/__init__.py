"""Comparisons: sweeps, the table of a sweep, and what differs between two runs."""
