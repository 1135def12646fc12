"""What a run leaves behind and how it is read: journal, checkpoints, provenance, history."""
