"""Command-line experiments, each a module to run with `python -m experiments.NAME`."""
