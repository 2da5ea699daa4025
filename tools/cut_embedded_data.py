"""Cuts the embedded subsets from the original files.

    python -m tools.cut_embedded_data --mnist DIR --cifar10 DIR

DIR holds the original IDX files or CIFAR-10 batches; for CIFAR-10 an .npz with ``images`` and ``labels`` in the
order of the training set will do too. The files replace those in
``lplr_cli/data/embedded`` and are reproducible bit by bit.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

import lplr_cli.data
from lplr_cli.data.sources import LabelledImages, balanced_order, read_cifar10, read_mnist, to_differences

EMBEDDED = Path(lplr_cli.data.__file__).parent / "embedded"


def write_subset(path: Path, source: LabelledImages, classes: tuple[int, ...], samples: int) -> None:
    """Write the first ``samples`` images, classes taking turns, without time stamps."""
    order = balanced_order(source.labels, classes, samples)
    images = source.images[order]
    stored = ("images", images) if images.ndim == 3 else ("differences", to_differences(images))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in (
            stored,
            ("labels", source.labels[order].astype(np.uint8)),
        ):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, buffer.getvalue())


def main() -> None:
    """Parse the command line and write whichever subsets were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="directory of the IDX files")
    parser.add_argument("--cifar10", type=Path, help="directory of the batches, or an .npz")
    arguments = parser.parse_args()
    if arguments.mnist:
        write_subset(EMBEDDED / "mnist.npz", read_mnist(arguments.mnist), (3, 8), 1000)
    if arguments.cifar10:
        if arguments.cifar10.suffix == ".npz":
            with np.load(arguments.cifar10, allow_pickle=False) as arrays:
                source = LabelledImages(arrays["images"], arrays["labels"].astype(np.int64), "npz")
        else:
            source = read_cifar10(arguments.cifar10)
        write_subset(EMBEDDED / "cifar10.npz", source, (0, 1, 2, 3, 4), 500)


if __name__ == "__main__":
    main()
