"""Files that are either the old or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lplr_cli.errors import OutputError

# A link in a run directory that somebody gave away may lead anywhere: no file is made or filled through one.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# As write_atomically names them; earlier versions did not name the process.
_TEMPORARY = re.compile(r"\..+\.(?:(?P<process>\d{1,10})-)?\w{8}\.tmp", re.DOTALL)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and rename it over ``path``.

    Raises:
        OutputError: the disk is full, or the directory is missing or read-only; ``path`` is as it was.
    """
    with output_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}-", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            # mkstemp makes files private; a result is as readable as the user's umask allows.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def clear_temporaries(directory: Path) -> None:
    """Remove what processes left in ``directory`` that died while they wrote; files of living ones stay."""
    for path in directory.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_alive(int(match["process"] or 0)):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(process: int) -> bool:
    if not process or os.name != "posix":
        return bool(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power cut, where the platform can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's write errors into one clear line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path} ({reason})", "check space and permissions") from error
    except RuntimeError as error:
        # torch.save wraps the system's error.
        raise OutputError(f"cannot write {path} ({str(error).splitlines()[0]})", "check space") from error
