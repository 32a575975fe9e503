"""Parts of `experiments.benchmark`: the sides that are timed, the timing, the report."""
