"""Sharpness: the largest eigenvalue of the loss Hessian, by Lanczos on Hessian-vector products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lplr_cli.ntk.network import Network, evaluation_mode
from lplr_cli.ntk.spectrum import start_vector


@dataclass(frozen=True)
class Sharpness:
    """λ_max(∇²L), an estimate from below (a Rayleigh quotient), with the number of products spent."""

    value: float
    products: int
    converged: bool


def squared_loss(network: Network, x: Tensor, y: Tensor, total: int) -> Tensor:
    """The share of the samples (x, y) in L = (1/n)||r||², n = ``total`` (theory.md section 1)."""
    return (network.forward(x) - y).square().sum() / total


def sharpness(
    network: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk: int = 1024,
    tolerance: float = 1e-4,
    max_products: int = 100,
) -> Sharpness:
    """λ_max of the Hessian of L over all samples.

    Args:
        network: f and θ.
        inputs: (n, …).
        targets: (n, C).
        chunk: samples in a micro-batch. A single micro-batch keeps its graph, so that a product costs one backward
            pass through it.
        tolerance: relative accuracy of the eigenvalue.
        max_products: Hessian-vector products to spend.
    """
    x, y = network.cast(inputs), targets.to(network.device, network.dtype)
    params = list(network.params.values())
    size = network.parameter_count
    spent = 0

    def gradient(part: slice) -> tuple[Tensor, ...]:
        loss = squared_loss(network, x[part], y[part], len(x))
        return torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)

    parts = [slice(i, i + chunk) for i in range(0, len(x), chunk)]
    with evaluation_mode(network.module), torch.enable_grad():
        kept = gradient(parts[0]) if len(parts) == 1 else None

        def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
            nonlocal spent
            spent += 1
            flat = torch.as_tensor(v.reshape(-1), dtype=network.dtype, device=network.device)
            split = torch.split(flat, [q.numel() for q in params])
            pieces = [p.view_as(q) for p, q in zip(split, params, strict=True)]
            total = torch.zeros(size, dtype=network.dtype, device=network.device)
            for part in parts:
                grads = kept if kept is not None else gradient(part)
                used = [(g, p) for g, p in zip(grads, pieces, strict=True) if g.requires_grad]
                if not used:
                    continue
                image = torch.autograd.grad(
                    [g for g, _ in used],
                    params,
                    [p for _, p in used],
                    retain_graph=kept is not None,
                    materialize_grads=True,
                )
                total += torch.cat([h.reshape(-1) for h in image])
            result: NDArray[np.float64] = total.double().cpu().numpy()
            return result

        if size <= 2:  # too small for Lanczos
            dense = np.stack([product(e) for e in np.eye(size)])
            return Sharpness(float(np.linalg.eigvalsh((dense + dense.T) / 2)[-1]), spent, True)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        basis = min(size - 1, 10)
        try:
            value = eigsh(
                operator,
                k=1,
                which="LA",
                v0=start_vector(size),
                ncv=max(2, basis),
                tol=tolerance,
                maxiter=max(1, max_products // basis),
                return_eigenvectors=False,
            )
            return Sharpness(float(value[0]), spent, True)
        except ArpackNoConvergence as error:
            if len(error.eigenvalues):
                return Sharpness(float(error.eigenvalues[0]), spent, False)
            return _power_iteration(product, size, max_products, lambda: spent)


def _power_iteration(product: object, size: int, steps: int, spent: object) -> Sharpness:
    """The dominant eigenvalue's Rayleigh quotient, where Lanczos gave nothing."""
    assert callable(product)
    assert callable(spent)
    v = start_vector(size)
    value = 0.0
    for _ in range(steps):
        v = v / np.linalg.norm(v)
        image = product(v)
        value = float(v @ image)
        v = image
    return Sharpness(value, int(spent()), False)
