"""Files of others, opened in one way: regular files of bounded size, and nothing that unpacks beyond measure.

A path may lead to a device that never ends, to a pipe that never begins, or to an archive of a thousand times its
size. Every reader of lplr opens its file here, and asks here before it unpacks.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lplr_cli.errors import InputError, first_line

if TYPE_CHECKING:
    import pandas as pd

# The largest files that are read: records (JSON, TOML), logs, and data or weights.
RECORD, LOG, BULK = 16 << 20, 4 << 30, 64 << 30
# A compressed file may unpack to UNPACKED bytes, or to EXPANSION times its size where that is more.
UNPACKED, EXPANSION = 1 << 30, 64
# Parts of a dotted key of TOML.
_PARTS = 100
# Bytes of a number in memory, however few it takes in a file.
_NUMBER = 8


def open_regular(path: Path, most: int = LOG, remedy: str = "give a readable file") -> IO[bytes]:
    """A regular file for reading; pipes, devices and folders are refused without waiting for them.

    Args:
        path: links are followed.
        most: bytes that the file may have.
        remedy: what to do when it cannot be read.

    Raises:
        InputError: missing, unreadable, longer than that, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})", remedy) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no file", remedy)
        if status.st_size > most:
            raise InputError(f"{path} has {status.st_size:,} bytes", f"files up to {most:,} are read here")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, most: int = LOG, remedy: str = "give a readable file") -> bytes:
    """All of a regular file; see :func:`open_regular`."""
    with open_regular(path, most, remedy) as stream:
        # A file may grow between the look at its size and the reading.
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} has more than {most:,} bytes", remedy)
    return content


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a regular file of at most :data:`RECORD` bytes.

    Raises:
        InputError: unreadable, no JSON, or no object.
    """
    content = read_bytes(path, RECORD, remedy)
    try:
        record = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON", remedy) from error
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no JSON object", remedy)
    return record


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """The tables in a TOML file of at most :data:`RECORD` bytes.

    Raises:
        InputError: unreadable, no TOML, or keys of very many parts, which take the square of their number in time.
    """
    content = read_bytes(path, RECORD, remedy)
    if any(part.count(b".") > _PARTS and b"," not in part for part in re.split(rb"[\n=]", content)):
        raise InputError(f"{path} has a key of more than {_PARTS} parts", remedy)
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid TOML ({first_line(error)})", remedy) from error


def refuse_expansion(name: str, unpacked: int, packed: int, remedy: str) -> None:
    """Refuse what unpacks to more than :data:`UNPACKED` and :data:`EXPANSION` times its size.

    Args:
        name: of the file.
        unpacked: bytes that it would take in memory.
        packed: bytes of the file.
        remedy: what to do.

    Raises:
        InputError: naming the size.
    """
    if unpacked > max(UNPACKED, EXPANSION * packed):
        raise InputError(f"{name} unpacks to {unpacked:,} bytes", remedy)


def read_parquet(
    stream: IO[bytes], name: str, pick: Callable[[list[str]], Sequence[str]] = lambda present: present
) -> tuple[pd.DataFrame, list[str]]:
    """Columns of a Parquet table, their size known before any is decoded; text stays a dictionary.

    Args:
        stream: a regular file, opened.
        name: for messages.
        pick: which columns, of those present.

    Returns:
        The table, and the names of all columns of the file.

    Raises:
        InputError: damaged, or larger in memory than :func:`refuse_expansion` lets pass.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
        file = pq.ParquetFile(stream)
        metadata, present = file.metadata, list(file.schema_arrow.names)
        # A table may have some hundred thousand columns: membership is asked of sets.
        known = set(present)
        chosen = dict.fromkeys(c for c in pick(present) if c in known)
        decoded = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        size = max(metadata.num_rows * max(len(chosen), 1) * _NUMBER, decoded)
        refuse_expansion(name, size, packed, "write fewer rows")
        text = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        nested = [f.name for f in file.schema_arrow if f.name in chosen and pa.types.is_nested(f.type)]
        if nested:
            raise InputError(f"{name} holds something else than numbers in {nested[0]}", "write plain columns")
        file = pq.ParquetFile(stream, read_dictionary=text)
        return file.read(columns=list(chosen)).to_pandas(ignore_metadata=True), present
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds for damaged files
        raise InputError(f"cannot read {name} ({first_line(error)})", "the file is no Parquet table") from error
