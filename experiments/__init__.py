"""Command-line experiments, each a module to run with `python -m experiments.NAME`."""

import sys

# Imports take seconds, in which Ctrl-C would be a traceback or lost in a library. "-m" stands here
# while Python looks for the module to run: whoever imports a part of this has other plans.
if sys.argv[:1] == ["-m"]:
    from experiments.cli.signals import end_at_signals

    end_at_signals()
