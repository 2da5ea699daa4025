"""Fetching of the whole data sets with fixed hashes (pooch)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lplr_cli.errors import InputError


@dataclass(frozen=True)
class Remote:
    """Files of a data set below ``base_url``, with their SHA-256."""

    base_url: str
    files: dict[str, str]


REMOTES: dict[str, Remote] = {
    "mnist": Remote(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        },
    ),
    "cifar10": Remote(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    ),
}


def download(name: str, directory: Path | None = None) -> Path:
    """Fetch the original files of ``mnist`` or ``cifar10`` unless they are there already.

    Args:
        name: key of :data:`REMOTES`.
        directory: where to keep them; the user's cache directory by default.

    Returns:
        The directory that holds the files, each with the expected hash.

    Raises:
        InputError: no such data set, no connection, or a file whose hash differs (it is not kept).
    """
    if name not in REMOTES:
        raise InputError(f"{name!r} cannot be downloaded", f"--download knows {', '.join(REMOTES)}")
    import pooch

    remote = REMOTES[name]
    target = directory or Path(pooch.os_cache("lplr")) / name
    pooch.get_logger().setLevel("ERROR")
    for file, digest in remote.files.items():
        try:
            pooch.retrieve(remote.base_url + file, known_hash=f"sha256:{digest}", fname=file, path=target)
        except ValueError as error:
            raise InputError(
                f"{file} from {remote.base_url} has not the expected SHA-256",
                "fetch it by hand, use --data-dir",
            ) from error
        except Exception as error:
            raise InputError(
                f"cannot fetch {remote.base_url}{file} ({type(error).__name__})",
                "check the network, or give the files by --data-dir",
            ) from error
    return target
