"""K in tiles on a Ray cluster of two nodes on this machine, one of which dies."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lplr_cli import ntk
from lplr_cli.linalg.tasks import Handle, RayTasks, connected
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, tiled
from tests.command import command

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core each; the workers find the same code as this process."""
    utils = pytest.importorskip("ray.cluster_utils")
    # Workers yield to everything else by default, which on a busy machine is for ever.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    made = utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 300 << 20, "include_dashboard": False},
    )
    made.second = made.add_node(num_cpus=1, object_store_memory=300 << 20)
    yield made
    made.shutdown()


def problem(samples: int) -> tuple[Network, torch.Tensor]:
    network = Network.from_module(build_model(ModelSpec(width=16, depth=2), (40,), 1))
    return network, torch.randn((samples, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Killing(RayTasks):
    """Kills something once so many tasks have been submitted."""

    def __init__(self, ray: ModuleType, after: int, kill: Callable[[], None]) -> None:
        super().__init__(ray)
        self.count, self.after, self.kill = 0, after, kill

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Handle:
        """As always, and then the blow."""
        handle = super().submit(function, *arguments)
        self.count += 1
        if self.count == self.after:
            self.kill()
        return handle


def where() -> str:
    """The node of a worker."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def test_a_node_killed_in_mid_work_changes_nothing(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "FEWEST_ROWS", 32)
    network, x = problem(400)
    alone = ntk.kernel_spectrum(network, x, verify=True, extremal=3).spectrum
    with connected(cluster.address) as ray:
        both = RayTasks(ray)
        assert len(set(both.get([both.submit(where) for _ in range(40)]))) == 2
        quiet = ntk.kernel_spectrum(network, x, verify=True, extremal=3, tasks=both).spectrum
        # 8 blocks and 36 tiles, some of them on the node that dies, 120 tasks a factorisation.
        dying = Killing(ray, 150, lambda: cluster.remove_node(cluster.second, allow_graceful=False))
        found = ntk.kernel_spectrum(network, x, verify=True, extremal=3, tasks=dying).spectrum
        assert dying.count > 200
        assert len(set(both.get([both.submit(where) for _ in range(10)]))) == 1
    # Nothing but time: bit for bit.
    assert found.eigenvalues.tolist() == quiet.eigenvalues.tolist()
    assert found.lambda_min_lower == quiet.lambda_min_lower
    assert alone.lambda_min_lower is not None
    assert found.lambda_min_lower == pytest.approx(alone.lambda_min_lower, rel=1e-3)
    assert found.eigenvalues[:3] == pytest.approx(alone.eigenvalues[:3], rel=1e-6)
    assert found.eigenvalues[-3:] == pytest.approx(alone.eigenvalues[-3:], rel=1e-9)


_most = [0]


def own() -> int:
    """Bytes of this process beside files and shared memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watch() -> tuple[int, int]:
    """A worker, and the most that it has had since it was first asked."""
    if not _most[0]:
        _most[0] = own()
        threading.Thread(target=_look, daemon=True).start()
    return os.getpid(), _most[0]


def _look() -> None:
    while True:
        _most[0] = max(_most[0], own())
        time.sleep(0.002)


def watched(tasks: RayTasks) -> dict[int, int]:
    found: dict[int, int] = {}
    for pid, size in tasks.get([tasks.submit(watch) for _ in range(60)]):
        found[pid] = max(size, found.get(pid, 0))
    return found


def test_a_worker_keeps_to_the_memory(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task takes beside the object store, whose size is the cluster's, and with four tiles of it."""
    monkeypatch.setattr(tiled, "SIDE", 1)  # tiles as large as the memory lets them be
    with connected(cluster.address) as ray:
        tasks = RayTasks(ray)
        ntk.kernel_spectrum(*problem(40), verify=True, tasks=tasks)  # what a worker loads at first use
        before = watched(tasks)
        memory = 110 << 20
        network, x = problem(3000)
        found = ntk.kernel_spectrum(network, x, verify=True, memory=memory, tasks=tasks).spectrum
        after = watched(tasks)
    assert found.lambda_min_lower is not None
    assert len(before) == 2
    grown = [after[pid] - size for pid, size in before.items() if pid in after]
    assert grown
    tile = 8 * 776**2  # the square root of half of 46 MiB over five entries
    assert max(grown) + 4 * tile < memory, grown
    assert max(grown) > tile, grown  # tiles were made


def test_the_command_on_a_cluster(cluster: Any, tmp_path: Path) -> None:
    small = ("--width", "8", "--depth", "1", "--samples", "40", "--steps", "2", "--probe-every", "0")
    assert command("train", "mnist", *small, "--out", "r", cwd=tmp_path).returncode == 0
    line = ("probe-ntk", "r", "--verify", "--format", "json")
    alone = json.loads(command(*line, cwd=tmp_path).stdout)
    spread = json.loads(command(*line, "--executor", "ray", "--ray-address", cluster.address, cwd=tmp_path).stdout)
    assert spread["lambda_max"] == pytest.approx(alone["lambda_max"], rel=1e-10)
    for name in ("value", "lower"):
        assert spread["lambda_min"][name] == pytest.approx(alone["lambda_min"][name], rel=1e-3)


def test_probes_of_checkpoints_go_out_as_tasks(cluster: Any, tmp_path: Path) -> None:
    small = ("--width", "8", "--depth", "1", "--samples", "40", "--steps", "4", "--probe-every", "0")
    assert command("train", "mnist", *small, "--checkpoint-every", "1", "--out", "r", cwd=tmp_path).returncode == 0
    line = ("audit", "r", "--offline-probe", "--no-certificate", "--fail-on", "never", "--format", "json")
    alone = json.loads(command(*line, cwd=tmp_path).stdout)
    spread = json.loads(command(*line, "--executor", "ray", "--ray-address", cluster.address, cwd=tmp_path).stdout)
    assert alone["H3"]["value"]
    for finding in ("H1", "H3", "H5"):
        assert spread[finding]["status"] == alone[finding]["status"]
        assert spread[finding]["value"] == pytest.approx(alone[finding]["value"], rel=1e-6)
