"""Fuzzed files of every kind under every command, in one process: ``python -m tests.reliability.fuzz_commands COUNT
[SEED] [FIRST]``. Prints a JSON object: exit codes by command, and every case that was not answered as documented.

A case follows from seed and number alone: run it again with COUNT 1 and its number as FIRST.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec
from lplr_cli.models import ModelSpec
from lplr_cli.training import TrainConfig, train

# For one case: of the processor, and on the clock of a machine that does other things as well.
SECONDS, PATIENCE = 60, 1200
MEMORY = 12 << 30
BITES = [
    b"\0", b'"', b"{", b"[", b"-", b"\xff\xfe", b"1e999", b"nan", b",,", b"\n", b"../", b"\x80", b"9" * 400, b"null",
    b"PK\x03\x04", b"PAR1", b"\x80\x04\x95", b"\xef\xbb\xbf", b"=cmd|", b"\x1b]52;c;", b"[/b]", b"%s{0}",
]  # fmt: skip
STRANGE: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 2**70, lambda: 10**400, lambda: 1.5,
    lambda: float("nan"), lambda: float("inf"), lambda: 1e300, lambda: 1e-320, lambda: "", lambda: "x" * 5000,
    lambda: "os:system", lambda: "a\0b", lambda: "\x1b[2J", lambda: "\ud800", lambda: "64", lambda: [], lambda: [[]],
    lambda: {}, lambda: {"a": {}}, lambda: "mnist", lambda: "resnet", lambda: "/dev/zero", lambda: [3, 8], lambda: 7,
]  # fmt: skip
TENSORS: list[Callable[[], Any]] = [
    lambda: torch.zeros(0), lambda: torch.zeros(3, 3), lambda: torch.tensor(1.0),
    lambda: torch.full((2, 2), float("nan")),
    lambda: torch.eye(3).to_sparse(), lambda: torch.empty(2, 2, device="meta"),
    lambda: torch.zeros(2, 2, dtype=torch.half),
    lambda: torch.zeros(2, 2, dtype=torch.complex64), lambda: torch.zeros(2, dtype=torch.uint8),
    lambda: torch.full((2, 784), 1e300, dtype=torch.float64), lambda: torch.zeros(1).expand(1 << 16, 1 << 16),
]  # fmt: skip
ARRAYS: list[Callable[[], Any]] = [
    lambda: np.empty((0, 3)), lambda: np.full((4, 4), 1e300), lambda: np.full((4, 4), 1e-300), lambda: np.zeros((4, 4)),
    lambda: np.array(["a"]), lambda: np.array(1.0), lambda: np.full((4, 4), np.nan), lambda: np.zeros((4, 4), complex),
    lambda: np.zeros((2, 2, 2, 2)), lambda: np.arange(4), lambda: np.array([True, False]), lambda: np.zeros((5000, 1)),
]  # fmt: skip

Commands = list[tuple[str, ...]]
READ: Commands = [
    ("pl-ratio", "r"), ("fit-rate", "r"), ("audit", "r", "--no-certificate"), ("list", "r"), ("watch", "r", "--once"),
    ("report", "r", "--no-certificate", "--out", "page.html"),
]  # fmt: skip
NETWORK: Commands = [
    ("probe-ntk", "r"), ("probe-ntk", "r", "--verify"), ("certify", "r"), ("probe-hessian", "r"), ("audit", "r"),
    ("audit", "r", "--offline-probe"), ("certify", "r", "--path"), ("report", "r", "--out", "figures"),
]  # fmt: skip
TRAIN: Commands = [("train", "--resume", "stopped"), ("train", "--from", "r", "--out", "again")]
SWEEP = ("ablate", "mnist", "--samples", "6", "--width", "2,3", "--depth", "1", "--lr", "0.1", "--steps", "2",
         "--probe-every", "0", "--out", "s", "--resume")  # fmt: skip
GRID = ("ablate", "mnist", "--samples", "4", "--steps", "1", "--depth", "1", "--width", "2", "--grid", "grid.toml",
        "--probe-every", "0", "--out", "g")  # fmt: skip
DATA = ("--data", "d.npz")
WEIGHTS: Commands = [
    ("probe-ntk", "{}", *DATA), ("certify", "{}", *DATA), ("probe-hessian", "{}", *DATA),
    ("probe-ntk", "{}", *DATA, "--activation", "tanh"),
]  # fmt: skip
LOGS: Commands = [
    ("pl-ratio", "{}"), ("fit-rate", "{}"), ("audit", "{}"), ("audit", "r", "--no-certificate", "--baseline", "{}"),
    ("report", "{}", "--out", "page.html"),
]  # fmt: skip
SAMPLES: Commands = [
    ("train", "{}", "--target", "y", "--width", "2", "--depth", "1", "--steps", "2", "--out", "again"),
    ("probe-ntk", "w.pt", "--data", "{}", "--target", "y", "--activation", "tanh"),
]
# What is fuzzed, and the commands that read it.
TARGETS: dict[str, Commands] = {
    "r/run.json": READ + NETWORK + TRAIN,
    "stopped/run.json": TRAIN[:1],
    "r/summary.json": READ,
    "r/log.csv": READ,
    "r/probes.csv": READ,
    "r/path.json": READ,
    "r/path.csv": READ,
    "p/log.parquet": [
        ("pl-ratio", "p"),
        ("fit-rate", "p"),
        ("audit", "p", "--no-certificate"),
        ("report", "p", "--no-certificate", "--out", "page.html"),
    ],
    "p/probes.parquet": [("pl-ratio", "p"), ("audit", "p", "--no-certificate")],
    "r/checkpoints/step-000000.pt": [*NETWORK, ("train", "--from", "r", "--out", "again")],
    "r/checkpoints/step-000012.pt": NETWORK[:2],
    "stopped/checkpoints/step-000008.pt": TRAIN[:1],
    "s/sweep.json": [SWEEP],
    "s/width2/run.json": [SWEEP],
    "grid.toml": [GRID],
    "policy.toml": [("audit", "r", "--no-certificate", "--policy", "policy.toml")],
    "w.pt": WEIGHTS,
    "w.safetensors": WEIGHTS,
    "w.pt2": WEIGHTS[:1],
    "d.npz": [("train", "d.npz", "--width", "2", "--depth", "1", "--steps", "2", "--out", "again"), *WEIGHTS[3:]],
    "d.csv": SAMPLES,
    "d.parquet": SAMPLES,
    "l.csv": LOGS,
    "l.jsonl": LOGS,
    "l.parquet": LOGS,
    "l.npz": LOGS,
}
# Of commands that take long, relative to 1.
SHARES = {"report": 0.1, "audit": 0.15, "fit-rate": 0.2, "train": 0.3, "probe-hessian": 0.3, "certify": 0.5}
RARE = ("s/", "grid", "w.pt2")


def stage() -> None:
    """Good files of every kind in the current folder."""
    config = TrainConfig(
        DataSpec("mnist", samples=6), ModelSpec(width=2, depth=1), lr=0.1, momentum=0.5, steps=12, probe_every=6,
        checkpoint_every=8,
    )  # fmt: skip
    train(config.with_(log_format="csv"), Path("r"))
    train(config.with_(log_format="parquet"), Path("p"))
    command("certify", "r", "--path")
    shutil.copytree("r", "stopped")
    (Path("stopped") / "checkpoints" / "step-000012.pt").unlink()
    record = json.loads(Path("stopped/run.json").read_text())
    Path("stopped/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    command(*SWEEP[:-1])
    Path("r/summary.json").write_text(Path("s/width2/summary.json").read_text())
    Path("grid.toml").write_text('[base]\nlr = 0.1\n[grid]\nseed = [0, 1]\n[[run]]\nactivation = "tanh"\nbeta = 2.0\n')
    Path("policy.toml").write_text('[default]\nrequire = ["H1.holds == true", "pl_ratio_star.min >= 0.01"]\n')
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    torch.save({"step": 3, "state_dict": net.state_dict()}, "w.pt")
    save_file(net.state_dict(), "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (torch.zeros(2, 4),)), "w.pt2")
    np.savez("d.npz", inputs=np.eye(4), targets=np.arange(4.0))
    table = pd.DataFrame({**{k: [0.1 * i * j for i in range(5)] for j, k in enumerate("abcd")}, "y": [0, 1, 0, 1, 1]})
    table.to_csv("d.csv", index=False)
    table.to_parquet("d.parquet")
    steps = np.arange(30)
    log = pd.DataFrame({"step": steps, "loss": 0.9**steps + 0.01, "grad_norm_sq": 0.81**steps, "lr": 0.1})
    log.to_csv("l.csv", index=False)
    log.to_parquet("l.parquet")
    log.to_json("l.jsonl", orient="records", lines=True)
    np.savez("l.npz", **{str(k): log[k].to_numpy() for k in log})  # type: ignore[arg-type]


def bitten(content: bytes, chance: random.Random) -> bytes:
    """A few places bitten, or cut."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(len(content), 1))
        bite = chance.choice(BITES) if chance.random() < 0.5 else chance.randbytes(chance.randint(1, 8))
        content = content[:at] + bite + content[at + len(bite) :]
    return content[: chance.randrange(len(content) + 1)] if chance.random() < 0.3 else content


def changed(record: Any, chance: random.Random, strange: list[Callable[[], Any]]) -> Any:
    """A nested record with one or two values changed, removed or added."""
    for _ in range(chance.randint(1, 2)):
        level, key = record, None
        while isinstance(level, dict | list) and level and (key is None or chance.random() < 0.7):
            inside = level[key] if key is not None else level
            if not isinstance(inside, dict | list) or not inside:
                break
            level, key = inside, chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if key is None:
            return chance.choice(strange)()
        if isinstance(level, dict) and chance.random() < 0.15:
            del level[key]
        elif isinstance(level, dict) and chance.random() < 0.1:
            level[chance.choice(["new", "kind", "", "\x1b[1m"])] = chance.choice(strange)()
        else:
            level[key] = chance.choice(strange)()
    return record


def fuzz(path: Path, chance: random.Random) -> None:
    """Damage a file: its bytes, or the values in it."""
    if chance.random() < 0.4:
        path.write_bytes(bitten(path.read_bytes(), chance))
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()), chance, STRANGE)), errors="surrogatepass")
    elif path.suffix == ".pt":
        torch.save(changed(torch.load(path, weights_only=True), chance, STRANGE + TENSORS), path)
    elif path.suffix == ".npz":
        with np.load(path) as kept:
            arrays = dict(kept)
        arrays[chance.choice(list(arrays))] = chance.choice(ARRAYS)()
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        frame = pd.read_parquet(path)
        value = chance.choice([None, 1e300, -1.0, float("inf"), 0.0, 2**62, "text", True])
        frame[chance.choice(list(frame.columns))] = [value] * len(frame)
        frame.to_parquet(path)
    else:
        words = path.read_bytes().split(b"," if path.suffix == ".csv" else b" ")
        words[chance.randrange(len(words))] = str(chance.choice(STRANGE)()).encode("utf-8", "replace")
        path.write_bytes((b"," if path.suffix == ".csv" else b" ").join(words))


class Hangs(BaseException):
    """A case took too long."""


def stop(number: int, frame: FrameType | None) -> None:
    raise Hangs


def command(*arguments: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*arguments, *(() if arguments[0] in ("watch",) else ("--format", "json"))])
    return code, err.getvalue()


def fault(code: int, err: str) -> str:
    """What is wrong with an answer; empty when it is as documented."""
    errors = [line for line in err.splitlines() if line.startswith("lplr: error: ")]
    if code not in (0, 1, 2, 3):
        return f"exit code {code}: {err[-300:]}"
    if "Traceback" in err or any(not line.startswith("lplr: ") for line in err.splitlines()):
        return f"more than lines of lplr: {err[-300:]}"
    return f"{len(errors)} errors: {err[-300:]}" if code in (2, 3) and len(errors) != 1 else ""


@contextlib.contextmanager
def pristine() -> Iterator[None]:
    """The staged files; whatever a command made is removed after."""
    kept = Path.cwd() / "work"
    shutil.copytree("staged", kept)
    try:
        with contextlib.chdir(kept):
            yield
    finally:
        shutil.rmtree(kept)


def case(seed: int, number: int) -> tuple[str, tuple[str, ...], int | None, str]:
    """One case: its file, its command, the exit code and what was wrong."""
    chance = random.Random(f"{seed}-{number}")
    names = [n for n in TARGETS if not n.startswith(RARE) or chance.random() < 0.1]
    name = chance.choice(names)
    commands = TARGETS[name]
    (chosen,) = chance.choices(commands, [SHARES.get(c[0], 1.0) for c in commands])
    arguments = tuple(a.format(name) for a in chosen)
    with pristine():
        fuzz(Path(name), chance)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(PATIENCE)
        try:
            code, err = command(*arguments)
        except Hangs:
            return name, arguments, None, "took too long"
        except BaseException as error:  # what escapes is a fault to report, whatever it is
            return name, arguments, None, f"escaped: {type(error).__name__}: {error}"[:300]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
    return name, arguments, code, fault(code, err)


def main(count: int, seed: int = 0, first: int = 0) -> dict[str, Any]:
    """``count`` cases from number ``first`` on, in the current folder."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    former = [signal.signal(signal.SIGALRM, stop), signal.signal(signal.SIGPROF, stop)]
    codes: collections.Counter[str] = collections.Counter()
    faults = []
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limit[1]))
        Path("staged").mkdir()
        with contextlib.chdir("staged"):
            stage()
        for number in range(first, first + count):
            name, arguments, code, wrong = case(seed, number)
            codes[f"{arguments[0]} {code}"] += 1
            if wrong:
                faults.append({"number": number, "file": name, "command": " ".join(arguments), "wrong": wrong})
                print(faults[-1], file=sys.stderr)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.signal(signal.SIGALRM, former[0])
        signal.signal(signal.SIGPROF, former[1])
    return {"count": count, "seed": seed, "codes": dict(sorted(codes.items())), "faults": faults}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(main(*map(int, sys.argv[1:])), indent=2))
