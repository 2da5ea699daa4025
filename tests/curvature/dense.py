"""The dense Hessian by torch's own nested Jacobians: independent of every product."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplr_cli.curvature import PerSample
from lplr_cli.ntk import Network, evaluation_mode

Matrix = NDArray[np.float64]


def hessian(network: Network, x: Tensor, y: Tensor, loss: PerSample) -> Matrix:
    """∇²L of the mean over x, (P, P)."""
    names = list(network.params)

    def mean(*values: Tensor) -> Tensor:
        return loss(network.forward(x, dict(zip(names, values, strict=True))), y).mean()

    points = tuple(p.detach() for p in network.params.values())
    with evaluation_mode(network.module):
        blocks = torch.autograd.functional.hessian(mean, points)  # type: ignore[no-untyped-call]
    rows = [torch.cat([b.reshape(p.numel(), -1) for b in row], dim=1) for row, p in zip(blocks, points, strict=True)]
    matrix: Matrix = torch.cat(rows).numpy()
    return (matrix + matrix.T) / 2


def gauss_newton(network: Network, x: Tensor, y: Tensor, loss: PerSample) -> Matrix:
    """(1/n) Σ J_iᵀ ∇²ℓ J_i from dense Jacobians and dense Hessians of the loss, (P, P)."""
    from tests.cases import dense_jacobian

    jacobian = dense_jacobian(network, x)
    total = torch.zeros(jacobian.shape[2], jacobian.shape[2], dtype=torch.float64)
    for i in range(len(x)):
        f = network.forward(x[i : i + 1]).detach()[0]
        inner = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            lambda out, i=i: loss(out[None], y[i : i + 1])[0], f
        )
        total += jacobian[i].T @ inner @ jacobian[i]
    result: Matrix = (total / len(x)).numpy()
    return result
