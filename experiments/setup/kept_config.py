"""The settings of a run out of its folder, which may be a stranger's."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from experiments.cli.options import UsageError, check
from rnn_jax.io.reading import shown

Config = TypeVar("Config")


def kept_config(
    experiment: str,
    config_class: type[Config],
    settings: Mapping[str, Any],
    facts: Sequence[str] = (),
) -> Config:
    """The config of a run from its config.json.

    Args:
        experiment: its name.
        config_class: of its settings.
        settings: the file's.
        facts: names that the file has beside the settings.

    Raises:
        ValueError: it is not of this experiment, or a setting is outside its limits.
    """
    # Where to write and how to compute is for whoever runs it to say, not for a file.
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]
    names = {field.name for field in fields if field.metadata.get("affects_results", True)}
    known = {name: value for name, value in settings.items() if name in names}
    strange = sorted(set(settings) - names - {"experiment", *facts})
    if settings.get("experiment") != experiment or strange:
        raise ValueError(
            f"a run of the experiment {shown(settings.get('experiment'))} with the settings "
            f"{', '.join(shown(name) for name in strange[:5]) or 'given'} is not one of "
            f"{experiment}"
        )
    config = config_class(**known)
    check(config)
    return config


def check_own_code(folder: str, settings: Mapping[str, Any], given: Sequence[str]) -> None:
    """`UsageError` where a run names a module that whoever looks at it has not named too.

    Args:
        folder: of the run, which may be a stranger's: a module that it names is not imported.
        settings: its config.json.
        given: what --cell and --task of the command line name.
    """
    for flag in ("cell", "task"):
        for name in (word.strip() for word in str(settings.get(flag, "")).split(",")):
            if ":" in name and name not in given:
                raise UsageError(
                    f"{folder} is of a {flag} of somebody's own, {shown(name)}, and code is not "
                    f"run because a folder names it; if it is yours, give --{flag}=MODULE:FUNCTION "
                    "as the run has it"
                )
