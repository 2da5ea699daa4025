"""How mutants are run: as forks of one process that has collected the tests, each with the changed code in place.

An interpreter a mutant costs a minute with torch on a small machine. Here a fork puts the code objects of the changed
source into the functions that are there and runs tests until one fails: only those that pass through the changed
statement, first those that have killed most for their time. What was found is kept in build/mutants by a digest of the
function, so that nothing is run twice; survivors are tried again when their tests have changed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tools.mutants import Mutant

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "mutants"
# What a test may take beyond four times its own before it is in an endless loop, in seconds of the processor.
_SPARE = 4.0


@dataclass
class _Test:
    """A test, the seconds that it takes, the lines that it passes, and how it fared against mutants."""

    item: pytest.Item
    seconds: float
    lines: set[int]
    killed: int = 0
    tried: int = 0

    @property
    def worth(self) -> float:
        """Kills to expect a second."""
        return (self.killed + 1) / (self.tried + 3) / (self.seconds + 0.02)


@dataclass
class _Record:
    """What is known of one file, kept as JSON."""

    path: Path
    baseline: dict[str, Any] = field(default_factory=dict)
    found: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: str) -> _Record:
        path = KEPT / f"{file.removesuffix('.py').replace('/', '.')}.json"
        return cls(path, **json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls(path)

    def keep(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps({"baseline": self.baseline, "found": self.found}, indent=1), encoding="utf-8")
        beside.replace(self.path)


def _key(mutant: Mutant) -> str:
    return hashlib.sha256(f"{mutant.digest} {mutant.name}".encode()).hexdigest()[:20]


def survivors(file: str, chosen: Sequence[Mutant]) -> list[Mutant]:
    """Those that were tried before and not killed."""
    found = _Record.of(file).found
    return [m for m in chosen if found.get(_key(m), {}).get("outcome") in ("survived", "not tried")]


def judge(file: str, chosen: Sequence[Mutant], tests: Sequence[str], budget: float) -> int:
    """Run them, print the survivors and a count; 1 when there are any, 2 when the tests fail without a change.

    Args:
        file: from the root of the project.
        chosen: its mutants.
        tests: files of tests, or single ones as file::name.
        budget: seconds of tests, after which a mutant has survived.
    """
    import torch
    from hypothesis import Phase, settings

    torch.set_num_threads(1)
    # Found is enough: the smallest example of a failure is of no use here.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", database=None, phases=phases, derandomize=True, deadline=None)
    settings.load_profile("mutants")
    session = _Session(file, chosen, tests, budget)
    options = ["-q", "--tb=no", "-p", "no:cacheprovider", "--no-header", "--no-summary"]
    code = pytest.main([*options, *tests], plugins=[session])
    return session.result if code == 0 else 2


class _Session:
    """Takes the place of pytest's own loop over the tests."""

    def __init__(self, file: str, chosen: Sequence[Mutant], tests: Sequence[str], budget: float) -> None:
        self.file, self.chosen, self.budget = file, chosen, budget
        self.record = _Record.of(file)
        self.out = os.dup(1)
        self.result = 0
        texts = [(ROOT / name.split("::")[0]).read_bytes() for name in tests]
        self.tests_digest = hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]

    def say(self, text: str) -> None:
        os.write(self.out, f"{text}\n".encode())

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        module = importlib.import_module(".".join(Path(self.file).with_suffix("").parts))
        every = self._baseline(session.items)
        if every is None:
            self.say(f"{self.file}: its tests fail without any change")
            self.result = 2
            return True
        counts: Counter[str] = Counter()
        for mutant in self.chosen:
            counts[self._outcome(module, mutant, every)] += 1
            if counts.total() % 50 == 0:
                self.say(f"{self.file}: {dict(counts)} of {len(self.chosen)}")
        self.say(f"{self.file}: {dict(counts)}")
        self.result = int(counts["survived"] + counts["not tried"] > 0)
        return True

    def _outcome(self, module: ModuleType, mutant: Mutant, every: list[_Test]) -> str:
        """``killed``, ``survived``, ``timeout`` (an endless loop: killed as well) or ``not tried``."""
        key = _key(mutant)
        known = self.record.found.get(key)
        if known is None or known["outcome"] not in ("killed", "timeout"):
            if known is None or known["tests"] != self.tests_digest:
                outcome, by = self._run(module, mutant, every)
                known = {"name": mutant.name, "outcome": outcome, "by": by, "tests": self.tests_digest}
                self.record.found[key] = known
                self.record.keep()
            if known["outcome"] not in ("killed", "timeout"):
                self.say(f"{self.file}:{mutant.line}: {known['outcome']} {known['by']}: {mutant.name}")
        return known["outcome"]

    def _run(self, module: ModuleType, mutant: Mutant, every: list[_Test]) -> tuple[str, str]:
        """The outcome, and the test that killed it."""
        # What stands in a class itself runs when it is imported.
        whole = isinstance(getattr(module, mutant.function, None), type)
        passing = [t for t in every if whole or any(mutant.line <= line <= mutant.last for line in t.lines)]
        passing.sort(key=lambda t: t.worth, reverse=True)
        taken: list[_Test] = []
        for test in passing:
            if taken and sum(t.seconds for t in taken) + test.seconds > self.budget:
                break
            taken.append(test)
        if not taken:
            return "survived", "(no test passes there)"
        code, last = _forked(module, mutant, taken)
        if code == _UNCHANGED:
            return "not tried", ""
        for test in taken[: last + 1]:
            test.tried += 1
        if code == 0:
            return "survived", "" if len(taken) == len(passing) else f"({len(taken)} of {len(passing)} tests)"
        taken[last].killed += 1
        return ("timeout" if code < 0 else "killed"), taken[last].item.nodeid

    def _baseline(self, items: list[pytest.Item]) -> list[_Test] | None:
        """Seconds and lines of each test, from a fork: here nothing of the package has run. None where one fails."""
        source = (ROOT / self.file).read_bytes()
        key = hashlib.sha256(source).hexdigest()[:16] + self.tests_digest
        if self.record.baseline.get("key") != key:
            read, write = os.pipe()
            if os.fork() == 0:
                os.close(read)
                _silence()
                with os.fdopen(write, "w") as pipe:
                    json.dump(_traced(items, str(ROOT / self.file)), pipe)
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                measured = json.load(pipe)
            os.wait()
            self.record.baseline = {"key": key, "tests": measured}
            self.record.keep()
        measured = self.record.baseline["tests"]
        if not measured or not all(measured.values()):
            self.say(f"{[k for k, v in measured.items() if not v]}")
            return None
        return [_Test(item, measured[item.nodeid][0], set(measured[item.nodeid][1])) for item in items]


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    from _pytest.runner import runtestprotocol

    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _traced(items: Sequence[pytest.Item], file: str) -> dict[str, Any]:
    """Seconds and lines of ``file`` by test; None for one that fails."""
    found: dict[str, Any] = {}
    lines: set[int] = set()

    def line(frame: FrameType, event: str, argument: object) -> Any:
        lines.add(frame.f_lineno)
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename == file else None

    for item, following in zip(items, [*items[1:], None], strict=True):
        lines.clear()
        start = time.process_time()
        sys.settrace(call)
        passed = _passes(item, following)
        sys.settrace(None)
        found[item.nodeid] = [time.process_time() - start, sorted(lines)] if passed else None
    return found


_UNCHANGED = 3


def _forked(module: ModuleType, mutant: Mutant, tests: Sequence[_Test]) -> tuple[int, int]:
    """Exit code (0 survived, 1 killed, negative a signal) of a fork with the mutant, and the last test it began."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _silence()
        try:
            if not put(module, mutant.make(), mutant.function):
                os._exit(_UNCHANGED)
            for test, following in zip(tests, [*tests[1:], None], strict=True):
                os.write(write, b".")
                seconds = math.ceil(time.process_time() + _SPARE + 4 * test.seconds)
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
                if not _passes(test.item, None if following is None else following.item):
                    os._exit(1)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(write)
    begun = 0
    while more := os.read(read, 4096):
        begun += len(more)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), max(begun - 1, 0)


def put(module: ModuleType, source: str, function: str) -> bool:
    """Put the code of changed source into the functions of ``module``, and constants of another value in their place.

    Args:
        module: as imported.
        source: the changed one.
        function: where the change is, by the names around it; anything else where it is not in a function.

    Returns:
        Whether that place was reached.
    """
    compiled = compile(source, str(module.__file__), "exec")
    codes = {code.co_qualname: code for code in _codes(compiled)}
    reached = set()
    for live in _functions(module):
        code = codes.get(live.__qualname__)
        if code is not None and code.co_freevars == live.__code__.co_freevars:
            live.__code__ = code
            reached.add(live.__qualname__)
    owners = [function.rsplit(".", count)[0] for count in range(function.count(".") + 1)]
    if any(owner in reached for owner in owners):
        return True
    fresh = {"__name__": module.__name__, "__file__": module.__file__, "__package__": module.__package__}
    exec(compiled, fresh)
    return _constants(vars(module), fresh, module)


def _constants(live: Any, fresh: Any, owner: Any) -> bool:
    """Copy numbers that differ, and defaults of dataclasses; whether there were any."""
    changed = False
    for name, value in list(fresh.items()):
        now = live.get(name)
        if type(value) in (int, float, bool) and now != value:
            setattr(owner, name, value)
            changed = True
        elif isinstance(value, type) and isinstance(now, type) and value.__module__ == now.__module__:
            changed |= _constants(vars(now), vars(value), now)
        elif name == "__init__" and isinstance(now, FunctionType) and now.__defaults__ != value.__defaults__:
            now.__defaults__ = value.__defaults__
            changed = True
    return changed


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """The functions and methods that a module defines, below their decorators."""

    def of(value: object) -> Iterator[FunctionType]:
        for name in ("fget", "fset", "__func__", "__wrapped__", "func"):
            inner = getattr(value, name, None)
            if inner is not None and not isinstance(value, type):
                yield from of(inner)
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            yield value
        if isinstance(value, type) and value.__module__ == module.__name__:
            for attribute in list(vars(value).values()):
                if not isinstance(attribute, type):
                    yield from of(attribute)

    for value in list(vars(module).values()):
        yield from of(value)
