"""Tasks that depend on each other's results: run here at once, or on a Ray cluster.

A task is a function without side effects, found by its name in a module, of arguments that are values or handles of
other results. So a result that is lost with its node is had again by running the task again, which Ray does by itself.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from lplr_cli.errors import InputError, NumericalError, first_line

# Results with a name in this module, which may be handed to further tasks.
Handle = Any


class Tasks(ABC):
    """Runs tasks."""

    @abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """The result to be of ``function``, whose handles among the arguments become values first."""

    @abstractmethod
    def share(self, value: Any) -> Handle:
        """A handle of a value that many tasks take."""

    @abstractmethod
    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """The values, once they are there.

        Raises:
            NumericalError: a result is lost for good.
        """


class Here(Tasks):
    """Every task at once, in this process."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """See :class:`Tasks`."""
        return function(*arguments)

    def share(self, value: Any) -> Handle:
        """See :class:`Tasks`."""
        return value

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """See :class:`Tasks`."""
        return list(handles)


class RayTasks(Tasks):
    """Tasks of one core each on a cluster; results lie in its object store, which spills to disk what does not fit.

    Args:
        ray: the module, connected.
        retries: of a task whose worker or node died.
    """

    def __init__(self, ray: ModuleType, retries: int = 10) -> None:
        self._ray, self._retries = ray, retries
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """See :class:`Tasks`."""
        if function not in self._remote:
            options = {"num_cpus": 1, "max_retries": self._retries, "retry_exceptions": False}
            self._remote[function] = self._ray.remote(function).options(**options)
        return self._remote[function].remote(*arguments)

    def share(self, value: Any) -> Handle:
        """See :class:`Tasks`."""
        return self._ray.put(value)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        """See :class:`Tasks`."""
        try:
            values: list[Any] = self._ray.get(list(handles))
            return values
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except self._ray.exceptions.RayError as error:
            raise NumericalError(f"a Ray task was lost ({type(error).__name__})", "run it again") from error


def _cause(error: Any) -> Exception:
    """What went wrong in the task itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else NumericalError(first_line(error), "see the logs of Ray")


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at ``address`` or started on this machine; left as it was found.

    Raises:
        InputError: the extra is missing, or nobody is there.
    """
    # Workers need no virtual environment of their own: they are those of the cluster's nodes.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs an extra", "pip install 'lplr[ray]'") from error
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises plain ones, too, where a node does not come up in time
            raise InputError(
                f"no Ray cluster at {address or 'this machine'} ({first_line(error)})", "check --ray-address"
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()
