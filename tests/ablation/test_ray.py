"""The Ray executor against a stand-in for Ray, which hands tasks back in the wrong order and loses some."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lplr_cli.ablation import Cell, RayCluster, run_sweep
from lplr_cli.data import DataSpec
from lplr_cli.errors import InputError
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig

BASE = TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=3, depth=1), lr=0.01, steps=2, probe_size=2)


class Task:
    """A function that runs when its result is asked for, without a cluster."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.wishes: dict[str, Any] = {}

    def options(self, **wishes: Any) -> Task:
        self.wishes = wishes
        return self

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        return lambda: self.function(*arguments)


class Ray(ModuleType):
    """What the executor uses of Ray."""

    class LostError(Exception):
        """A worker or node that died."""

    def __init__(self, lost: int = -1, address: str | None = None) -> None:
        super().__init__("ray")
        self.lost, self.address = lost, address
        self.exceptions = SimpleNamespace(RayError=self.LostError)
        self.running = False
        self.tasks: list[Task] = []
        self.order: list[Callable[[], Any]] = []

    def is_initialized(self) -> bool:
        return self.running

    def init(self, address: str | None, **_: Any) -> None:
        if address != self.address:
            raise ConnectionError(f"nobody at {address}\nsecond line")
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def remote(self, function: Callable[..., Any]) -> Task:
        self.tasks.append(Task(function))
        return self.tasks[-1]

    def wait(self, pending: Sequence[Callable[[], Any]], num_returns: int) -> tuple[list[Any], list[Any]]:
        return list(pending[-num_returns:]), list(pending[:-num_returns])

    def get(self, reference: Callable[[], Any]) -> Any:
        self.order.append(reference)
        if len(self.order) - 1 == self.lost:
            raise self.LostError
        return reference()


def test_rows_come_in_any_order_and_a_lost_task_is_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray, begun = Ray(lost=1), list[str]()
    monkeypatch.setitem(sys.modules, "ray", ray)
    cells = [Cell("one", {"seed": 1}), Cell("two", {"seed": 2}), Cell("three", {"seed": 3})]
    frame, status = run_sweep(
        BASE, {}, tmp_path / "s", single=cells, executor=RayCluster(cpus=2, gpus=0.5, retries=4),
        on_cell=lambda i, n, cell: begun.append(f"{i}/{n} {cell.name}"),
    )  # fmt: skip
    assert status == "finished"
    assert begun == ["0/3 one", "1/3 two", "2/3 three"]
    assert frame["run"].tolist() == ["one", "two", "three"]
    assert frame["status"].tolist() == ["finished", "failed", "finished"]
    assert frame["error"].fillna("").tolist() == ["", "its Ray task was lost (LostError)", ""]
    wishes = {"num_cpus": 2, "num_gpus": 0.5, "max_retries": 4, "retry_exceptions": False}
    assert [task.wishes for task in ray.tasks] == [wishes]
    assert not ray.running
    # Where there is a cluster already, it is left running.
    ray.running, ray.lost = True, -1
    again, _ = run_sweep(BASE, {}, tmp_path / "s", single=cells, executor=RayCluster(), continue_=True)
    assert again["status"].tolist() == ["finished"] * 3
    assert ray.running


def test_no_cluster_and_no_ray_are_one_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", Ray(address="head:1"))
    with pytest.raises(InputError, match=r"no Ray cluster at head:2 \(nobody at head:2\); check --ray-address"):
        run_sweep(BASE, {"seed": [0]}, tmp_path / "a", executor=RayCluster("head:2"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'lplr\[ray\]'"):
        run_sweep(BASE, {"seed": [0]}, tmp_path / "b", executor=RayCluster())
