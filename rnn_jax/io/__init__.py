"""Run folders, checkpoints, and files from strangers."""
