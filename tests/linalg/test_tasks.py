"""Tasks of a Ray that is a stand-in: what is asked of it, and what its failures become."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lplr_cli.errors import InputError, NumericalError
from lplr_cli.linalg.tasks import Here, RayTasks, connected


class Lost(Exception):
    """As RayError."""


class Failed(Lost):
    """As RayTaskError."""

    def __init__(self, cause: object) -> None:
        super().__init__("task failed\nin many lines")
        self.cause = cause


class Stand(ModuleType):
    """Results are made when they are asked for, of handles that were made before."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Failed)
        self.error, self.wishes, self.open = error, list[dict[str, Any]](), False

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(**wishes: Any) -> Any:
            self.wishes.append(wishes)
            return SimpleNamespace(remote=lambda *given: lambda: function(*(self._value(g) for g in given)))

        return SimpleNamespace(options=options)

    @staticmethod
    def _value(given: Any) -> Any:
        return given() if callable(given) else given

    def put(self, value: Any) -> Any:
        return lambda: value

    def get(self, handles: list[Any]) -> list[Any]:
        if self.error is not None:
            raise self.error
        return [self._value(h) for h in handles]

    def is_initialized(self) -> bool:
        return self.open

    def init(self, **_: Any) -> None:
        if self.error is not None:
            raise self.error
        self.open = True

    def shutdown(self) -> None:
        self.open = False


def test_results_go_on_to_further_tasks() -> None:
    ray = Stand()
    for tasks in (RayTasks(ray, retries=4), Here()):
        one = tasks.submit(max, 3, tasks.share(5))
        two = tasks.submit(max, one, 4)
        assert tasks.get([one, two]) == [5, 5]
    assert ray.wishes == [{"num_cpus": 1, "max_retries": 4, "retry_exceptions": False}]


def test_failures_are_one_line() -> None:
    cause = InputError("the model's control flow depends on the data", "use --engine jacobian")
    with pytest.raises(InputError, match="control flow"):
        RayTasks(Stand(Failed(cause))).get([])
    with pytest.raises(NumericalError, match=r"^task failed; see the logs of Ray$"):
        RayTasks(Stand(Failed("text"))).get([])
    with pytest.raises(NumericalError, match=r"a Ray task was lost \(Lost\)"):
        RayTasks(Stand(Lost())).get([])


def test_ray_is_left_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Stand()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with connected(None) as found:
        assert found is ray
        assert ray.open
        with connected(None):
            pass
        assert ray.open
    assert not ray.open
    monkeypatch.setitem(sys.modules, "ray", Stand(Exception("timed out\nhere")))
    with pytest.raises(InputError, match=r"no Ray cluster at this machine \(timed out\)"), connected(None):
        pass
