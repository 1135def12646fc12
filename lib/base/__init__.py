"""What every other room stands on: errors, files, secrets in texts, signals, and how a program was started."""
