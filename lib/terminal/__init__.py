"""What a user reads in the terminal: progress, tables, sparklines, and a run that is followed."""
