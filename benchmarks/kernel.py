"""The structured kernel against the torch.func tutorial's Jacobian contraction, its own bare GEMMs, and peers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from benchmarks.timing import median_ratio, paired
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, empirical_ntk

N = 500


def contraction(model: nn.Module, x: Tensor, chunk: int | None = None) -> Tensor:
    """The kernel as in torch.func's tutorial: the whole Jacobian, then an einsum a parameter."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(model, p, (sample.unsqueeze(0),))
        return out.squeeze(0)

    jacobians = vmap(jacrev(single), (None, 0), chunk_size=chunk)(params, x)
    flat = [j.flatten(2) for j in jacobians.values()]
    return torch.stack([torch.einsum("Naf,Mbf->NMab", j, j) for j in flat]).sum(0)


def measure(width: int, peer: float | None) -> str:
    """A row of the table."""
    x = torch.from_numpy(load_dataset(DataSpec("mnist", samples=N)).inputs).float()
    model = build_model(ModelSpec(width=width), (784,), 1, dtype=torch.float32)
    network = Network.from_module(model, dtype=torch.float32)
    factors = [torch.randn(N, 784), *(torch.randn(N, width) for _ in range(8))]
    times = paired(
        {
            "structured": lambda: empirical_ntk(network, x),
            "gemms": lambda: [f @ f.T for f in factors],
            "contraction": lambda: contraction(model, x),
        },
        rounds=9,
    )
    ours = min(times["structured"])
    beside = "–" if peer is None else f"{peer:.4f} ({peer / ours:.1f} ×)"
    return (
        f"| {width} | {ours:.4f} | {min(times['gemms']):.4f} | {min(times['contraction']):.3f} | {beside} "
        f"| {median_ratio(times['contraction'], times['structured']):.0f} × "
        f"| {median_ratio(times['structured'], times['gemms']):.2f} |"
    )


def report() -> str:
    """A Markdown table for the MLP 784-m×4-1, n = 500, float32."""
    from benchmarks.peers import elsewhere

    peer = elsewhere("LPLR_BENCH_NT_PYTHON", "neural_tangents_peer.py")
    head = [
        "| m | structured, s | bare GEMMs, s | Jacobian contraction, s | neural-tangents, s | faster than contraction "
        "| over GEMMs |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join(head + [measure(width, peer.get(str(width))) for width in (128, 512)])


def resnet_report() -> str:
    """A Markdown table for the ResNet of 2.8 million parameters, five outputs, n = 100, within 4 GiB."""
    model = build_model(ModelSpec(kind="resnet", width=64), (3, 32, 32), 5, dtype=torch.float32)
    network = Network.from_module(model, dtype=torch.float32)
    x = torch.rand((100, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    times = paired(
        {
            "structured": lambda: empirical_ntk(network, x, memory=4 << 30),
            "contraction": lambda: contraction(model, x, chunk=10),
        },
        rounds=2,
    )
    ratio = median_ratio(times["contraction"], times["structured"])
    return (
        "| structured, s | Jacobian contraction, s | faster |\n|---:|---:|---:|\n"
        f"| {min(times['structured']):.1f} | {min(times['contraction']):.1f} | {ratio:.1f} × |"
    )
