"""Where a run writes and how it computes; none of it changes a result."""

import dataclasses

from experiments.cli.options import option


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Settings of an experiment that writes a folder."""

    workdir: str = option("runs/run", "folder for results and figures", affects_results=False)
    overwrite: bool = option(False, "start afresh, whatever is in --workdir", affects_results=False)
    compilation_cache: bool = option(
        True, "keep compiled programs in the user's cache folder", affects_results=False
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Settings of an experiment that trains and can be resumed."""

    checkpoint_every: int = option(
        0,
        "iterations between two checkpoints, which come where something is logged; 0 for one about "
        "every minute",
        minimum=0,
        affects_results=False,
    )
    resume: bool = option(
        True, "go on from the newest checkpoint in --workdir", affects_results=False
    )
