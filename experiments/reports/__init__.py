"""What an experiment found, as figures, tables and words; one file an experiment."""
