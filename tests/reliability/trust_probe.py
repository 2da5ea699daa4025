"""Every command on files that name code, with an audit hook: ``python -m tests.reliability.trust_probe`` in an empty
folder, each place by itself with ``all``, else several at once. Prints a JSON object: for each command and place its
exit code and last line of stderr, and what the hook saw.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import lplr_cli as lplr
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.errors import LplrError
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

SHELL = {"kind": "os:system", "arguments": {"command": "touch ran"}}
SPAWN = {"kind": "subprocess:Popen", "arguments": {"args": ["touch", "ran"]}}
MODULE = {"kind": "payload:go", "arguments": {}}
Change = Callable[[Path], None]
PAYLOAD = "import pathlib\npathlib.Path('ran').touch()\ndef go(**rest): pathlib.Path('ran').touch()\n"


def in_checkpoints(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        for path in folder.rglob("*.pt"):
            torch.save({**torch.load(path, weights_only=True), **changes}, path)

    return change


def in_json(name: str, **changes: Any) -> Change:
    """Sections of a JSON file, one level down, get other values."""

    def change(folder: Path) -> None:
        for path in folder.rglob(name):
            record = json.loads(path.read_text())
            for key, value in changes.items():
                record[key] = {**record[key], **value} if isinstance(record.get(key), dict) else value
            path.write_text(json.dumps(record))

    return change


DATA = {"source": "payload:go"}
PLACES: dict[str, Change] = {
    "checkpoint model, shell": in_checkpoints(model=SHELL),
    "checkpoint model, process": in_checkpoints(model=SPAWN),
    "checkpoint model, module": in_checkpoints(model=MODULE),
    "checkpoint data": in_checkpoints(data=DATA),
    "checkpoint both": in_checkpoints(model=SHELL, data=DATA),
    "configuration, model": in_json("run.json", config={"model": SHELL}),
    "configuration, data": in_json("run.json", config={"data": DATA}),
    "run.json, model": in_json("run.json", model=SHELL),
    "run.json, data": in_json("run.json", data=DATA),
    "summary.json": in_json("summary.json", model=SHELL, data=DATA),
    "sweep.json": in_json("sweep.json", base={"model": SHELL, "data": DATA}),
}
SWEEP = ("ablate", "mnist", "--samples", "6", "--width", "2,3", "--depth", "1", "--lr", "0.1", "--steps", "4",
         "--probe-every", "2", "--out", "s")  # fmt: skip
FIRST = "r/checkpoints/step-000000.pt"
COMMANDS: dict[str, tuple[str, ...]] = {
    "probe-ntk run": ("probe-ntk", "r"),
    "probe-ntk checkpoint": ("probe-ntk", FIRST),
    "certify run": ("certify", "r"),
    "certify checkpoint": ("certify", FIRST, "--run", "r"),
    "audit": ("audit", "r", "--fail-on", "never"),
    "audit offline": ("audit", "bare", "--offline-probe", "--fail-on", "never"),
    "audit baseline": ("audit", "clean", "--baseline", "r", "--fail-on", "never"),
    "report": ("report", "r", "-o", "page.html", "--force"),
    "report sweep": ("report", "s", "-o", "page.html", "--force"),
    "pl-ratio": ("pl-ratio", "r"),
    "pl-ratio recompute": ("pl-ratio", "bare"),
    "fit-rate": ("fit-rate", "r"),
    "list": ("list", "."),
    "watch": ("watch", "r", "--once"),
    "train resume": ("train", "--resume", "stopped"),
    "train from": ("train", "--from", "r", "--out", "again"),
    "ablate resume": (*SWEEP, "--resume"),
    "ablate resume jobs": (*SWEEP, "--resume", "--jobs", "2"),
}


def everywhere(folder: Path) -> None:
    """All places at once."""
    for change in PLACES.values():
        change(folder)


# The same with few places, each of them several of the others at once.
TOGETHER: dict[str, Change] = {
    "everything": everywhere,
    "checkpoint model, module": PLACES["checkpoint model, module"],
    "configuration, data": PLACES["configuration, data"],
}
SLOW = ("certify checkpoint", "report sweep", "ablate resume jobs", "audit baseline")
QUICK = ("probe-ntk run", "audit offline", "pl-ratio recompute", "train resume", "train from")
GRIDS = {
    "grid base": '[base]\nkind = "payload:go"\n[grid]\nseed = [0, 1]\n',
    "grid axis": '[grid]\nkind = ["mlp", "os:system"]\n',
    "grid run": '[[run]]\nkind = "os:system"\narguments = {command = "touch ran"}\n',
}
CALLS: dict[str, Callable[[], object]] = {
    "api probe_ntk": lambda: lplr.probe_ntk("r"),
    "api certify": lambda: lplr.certify(FIRST),
    "api audit": lambda: lplr.audit("r"),
    "api pl_ratio": lambda: lplr.pl_ratio("r"),
    "api train": lambda: train(TrainConfig.from_dict(json.loads(Path("r/run.json").read_text())["config"]), Path("n")),
}


def stage() -> None:
    """A run, one that was interrupted, one without gradient norms, and a sweep."""
    # The last ones have names that a process which starts in this folder might import.
    for name in ("payload", "torch", "numpy", "runpy"):
        Path(f"{name}.py").write_text(PAYLOAD)
    config = TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=2, depth=1), lr=0.1, steps=12, probe_every=6)
    train(config, Path("r"))
    shutil.copytree("r", "stopped")
    in_json("run.json", status="interrupted")(Path("stopped"))
    shutil.copytree("r", "bare")
    for name in ("log.parquet", "probes.csv", "probes.parquet"):
        (Path("bare") / name).unlink()
    lines = (Path("bare") / "log.csv").read_text().splitlines()
    rows = [",".join(v if i != 3 else "" for i, v in enumerate(line.split(","))) for line in lines[1:]]
    (Path("bare") / "log.csv").write_text("\n".join([lines[0], *rows, ""]))
    shutil.copytree("r", "clean")
    command(*SWEEP)


def command(*arguments: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    lines = [line for line in err.getvalue().splitlines() if line.startswith("lplr: ")]
    return code, lines[-1] if lines else ""


def call(function: Callable[[], object]) -> tuple[int, str]:
    try:
        function()
        return 0, ""
    except LplrError as error:
        return error.exit_code, str(error)


@contextlib.contextmanager
def hostile(change: Change) -> Iterator[None]:
    """The staged folders as ``change`` leaves them; they are restored."""
    for name in ("r", "stopped", "bare", "s"):
        shutil.copytree(name, Path("kept") / name)
        change(Path(name))
    try:
        yield
    finally:
        for name in ("r", "stopped", "bare", "s"):
            shutil.rmtree(name)
            shutil.move(Path("kept") / name, name)
        for name in ("again", "n", "grid", "page.html"):
            shutil.rmtree(name, ignore_errors=True) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)


SEEN: list[str] = []
WORKERS = "lplr_cli.ablation.cell"


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes code that files name: imports of the payload, shells and processes, its execution."""
    named = event == "import" and str(arguments[0]).split(".")[0] == "payload"
    executed = event == "exec" and "payload" in str(getattr(arguments[0], "co_filename", arguments[0]))
    started = event in ("os.system", "os.exec", "os.posix_spawn", "os.fork") or (
        # Sweeps with --jobs start workers of lplr itself.
        event == "subprocess.Popen" and not any(WORKERS in str(part) for part in arguments[1])
    )
    if named or executed or started:
        SEEN.append(f"{event} {arguments[:2]!r}"[:200])


def main(everything: bool) -> None:
    """All combinations in this process."""
    stage()
    results: dict[str, dict[str, tuple[int, str]]] = {}
    sys.addaudithook(hook)
    for place, change in (PLACES if everything else TOGETHER).items():
        with hostile(change):
            few = [c for c in COMMANDS if c not in SLOW] if place == "everything" else QUICK
            chosen = COMMANDS if everything else few
            found = {name: command(*COMMANDS[name]) for name in chosen}
            found |= {name: call(function) for name, function in CALLS.items()}
        results[place] = found
    for place, text in GRIDS.items():
        Path("grid.toml").write_text(text)
        results[place] = {"ablate grid": command("ablate", "mnist", "--grid", "grid.toml", "--out", "grid")}
    print(json.dumps({"results": results, "seen": SEEN, "ran": os.path.exists("ran")}))


if __name__ == "__main__":
    main(sys.argv[1:] == ["all"])
