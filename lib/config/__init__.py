"""The configuration: options as Kconfig declares them, their files, and the command line."""
