"""The machine: its devices, its ranks, and the state of its random generators."""
