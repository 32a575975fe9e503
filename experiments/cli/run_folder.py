"""A run's folder, opened with the settings that its results depend on."""

import dataclasses
from pathlib import Path
from typing import Any

from rnn_jax.io import records


def settings_of(experiment: str, config: Any) -> dict[str, Any]:
    """What is kept in config.json: the settings that a run's results depend on."""
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata.get("affects_results", True)
    }
    return {"experiment": experiment, **settings}


def open_run_folder(experiment: str, config: Any, **facts: Any) -> Path:
    """The run's folder, with the settings written in it; errors are those of `records.open_run`.

    Args:
        experiment: its name.
        config: with `workdir` and `overwrite`.
        facts: what else results depend on, kept with the settings.
    """
    settings = settings_of(experiment, config) | facts
    return records.open_run(config.workdir, settings, config.overwrite)
