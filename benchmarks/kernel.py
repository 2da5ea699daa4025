"""The structured kernel against the torch.func tutorial's Jacobian contraction and its own bare GEMMs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from benchmarks.timing import median_ratio, paired
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, empirical_ntk

N = 500


def measure(width: int) -> str:
    """A row of the table."""
    x = torch.from_numpy(load_dataset(DataSpec("mnist", samples=N)).inputs).float()
    model = build_model(ModelSpec(width=width), (784,), 1, dtype=torch.float32)
    network = Network.from_module(model, dtype=torch.float32)
    factors = [torch.randn(N, 784), *(torch.randn(N, width) for _ in range(8))]
    params = {k: p.detach() for k, p in model.named_parameters()}

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(model, p, (sample.unsqueeze(0),))
        return out.squeeze(0)

    def contraction() -> Tensor:
        jacobians = vmap(jacrev(single), (None, 0))(params, x)
        flat = [j.flatten(2) for j in jacobians.values()]
        return torch.stack([torch.einsum("Naf,Mbf->NMab", j, j) for j in flat]).sum(0)

    times = paired(
        {
            "structured": lambda: empirical_ntk(network, x),
            "gemms": lambda: [f @ f.T for f in factors],
            "contraction": contraction,
        },
        rounds=5,
    )
    return (
        f"| {width} | {min(times['structured']):.4f} | {min(times['gemms']):.4f} | {min(times['contraction']):.3f} "
        f"| {median_ratio(times['contraction'], times['structured']):.0f} × "
        f"| {median_ratio(times['structured'], times['gemms']):.2f} |"
    )


def report() -> str:
    """A Markdown table for the MLP 784-m×4-1, n = 500, float32."""
    head = [
        "| m | structured, s | bare GEMMs, s | Jacobian contraction, s | faster than contraction | over GEMMs |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join(head + [measure(width) for width in (128, 512)])
