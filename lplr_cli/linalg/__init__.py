"""Numerics that know nothing of networks: Lanczos, Cholesky, verified bounds, matrices in files."""

from lplr_cli.linalg.lanczos import Ritz, lanczos
from lplr_cli.linalg.verified import LowerBound, gamma, lambda_min_lower

__all__ = ["LowerBound", "Ritz", "gamma", "lambda_min_lower", "lanczos"]
