"""Data sets: the embedded subsets, the original files, and the user's own."""

from lplr_cli.data.dataset import TARGETS, Dataset, DataSpec, encode_targets, load_dataset

__all__ = ["TARGETS", "DataSpec", "Dataset", "encode_targets", "load_dataset"]
