"""The command line: flags and launch, axes, signals, progress."""
