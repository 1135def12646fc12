"""What all other rooms use: errors, files, redaction of secrets, signals, threads, and the launcher of a process."""
