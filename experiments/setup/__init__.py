"""What is set up from the settings: cell, model, objective, optimizer; presets; tasks."""
