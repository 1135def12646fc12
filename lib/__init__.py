"""The parts of Espalier that know nothing of GPT-2: configuration, optimizers, journal, trackers, checkpoints."""
