"""Engines move runs, or the processes of one run: to this machine, Ray or SLURM. None of ours schedules."""
