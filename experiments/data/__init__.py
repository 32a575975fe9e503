"""Readers and splits of the data that ships, and of the user's own."""
