"""Where work runs that can be cut into tasks: in this process, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lplr_cli.errors import InputError

if TYPE_CHECKING:
    from lplr_cli.linalg.tasks import Tasks

EXECUTORS = ("local", "ray")


def check_executor(executor: str, address: str | None) -> None:
    """Refuse at once what is no executor.

    Raises:
        InputError: saying why.
    """
    if executor not in EXECUTORS:
        raise InputError(f"--executor {executor!r} is unknown", f"choose from {', '.join(EXECUTORS)}")
    if executor == "local" and address is not None:
        raise InputError("--ray-address is of a Ray cluster", "add --executor ray")


@contextmanager
def tasks_of(executor: str, address: str | None) -> Iterator[Tasks | None]:
    """Where tasks run; None for this process."""
    if executor == "local":
        yield None
        return
    from lplr_cli.linalg.tasks import RayTasks, connected

    with connected(address) as ray:
        yield RayTasks(ray)
