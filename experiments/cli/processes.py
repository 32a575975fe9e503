"""A run of several processes: what flags say of them fits together, or one line says what not."""

from experiments.cli.options import UsageError


def check_processes(coordinator_address: str, num_processes: int, process_id: int) -> None:
    """`UsageError` where some of what says which process this is, but not all, is given."""
    given = {
        f"--coordinator_address={coordinator_address}": bool(coordinator_address),
        f"--num_processes={num_processes}": num_processes > 0,
        f"--process_id={process_id}": process_id >= 0,
    }
    there = " ".join(flag for flag, is_given in given.items() if is_given)
    if there and not all(given.values()):
        missing = " and ".join(
            flag.partition("=")[0] for flag, is_given in given.items() if not is_given
        )
        raise UsageError(
            f"{there}: {missing} must be given too; or give --distributed alone where SLURM, "
            "Kubernetes or a TPU pod knows the processes"
        )
    if there and process_id >= num_processes:
        raise UsageError(
            f"--process_id={process_id}: processes are numbered from 0, and there are "
            f"--num_processes={num_processes} of them"
        )
    host, _, port = coordinator_address.rpartition(":")
    if there and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(
            f"--coordinator_address={coordinator_address}: give the host of process 0 and "
            "a port, such as host0:9876"
        )
