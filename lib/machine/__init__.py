"""The machine: its devices, the ranks of a job, and the state of random generators."""
