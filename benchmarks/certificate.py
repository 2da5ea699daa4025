"""How near the Hessian bounds come to the largest Hessian norm found, and what they cost."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from benchmarks.timing import paired
from lplr_cli.certificate import BallBounds, SmoothMLP
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import MLP, ModelSpec, build_model

WIDTHS = (64, 256, 1024)
SAMPLES = 8


def digits(n: int) -> Tensor:
    """n embedded digits, (n, 784)."""
    return torch.from_numpy(load_dataset(DataSpec("mnist", samples=n)).inputs).double()


def network(width: int, parametrization: str, activation: str = "softplus") -> MLP:
    """784-m×4-1, He."""
    model = build_model(ModelSpec(width=width, parametrization=parametrization, activation=activation), (784,), 1)
    assert isinstance(model, MLP)
    return model


def hessian_norm(model: MLP, x: Tensor, steps: int = 80) -> float:
    """||∇²f(x)|| by power iteration: a lower bound."""
    params = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    first = torch.autograd.grad(model(x[None]).sum(), params, create_graph=True)
    used = [i for i, g in enumerate(first) if g.requires_grad]
    v = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    size = 1.0
    for _ in range(steps):
        size = float(torch.sqrt(torch.stack([q.square().sum() for q in v]).sum()))
        v = [q / size for q in v]
        v = list(
            torch.autograd.grad(
                [first[i] for i in used], params, [v[i] for i in used], retain_graph=True, materialize_grads=True
            )
        )
    return float(torch.sqrt(torch.stack([q.square().sum() for q in v]).sum()))


def seconds(width: int, method: str) -> tuple[float, float, float]:
    """(bounds at θ_0 and one radius, ten forward and backward passes, one SVD) for n = 1,000: medians of three."""
    x, model = digits(1000), network(width, "standard")
    net, square = SmoothMLP.from_module(model), torch.randn(width, width, dtype=torch.float64)

    def passes() -> None:
        for _ in range(10):
            torch.autograd.grad(model(x).square().mean(), list(model.parameters()))

    times = paired(
        {
            "bounds": lambda: BallBounds(net, x, method=method).l_j(1e-4),
            "passes": passes,
            "svd": lambda: torch.linalg.svd(square),
        },
        rounds=3,
    )
    return statistics.median(times["bounds"]), statistics.median(times["passes"]), statistics.median(times["svd"])


def report() -> str:
    """Two Markdown tables: tightness at R = 0 and small R over 1,000 digits, on the first of them, and time."""
    everything = digits(1000)
    x = everything[:SAMPLES]
    lines = [
        "| m | activation | parametrisation | Hessian found | tight / found | fast / found | fast at R = 1e-4 |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    cases = [(width, "softplus", p) for width in WIDTHS for p in ("standard", "ntk")]
    cases += [(256, activation, "standard") for activation in ("tanh", "gelu", "silu")]
    for width, activation, parametrization in cases:
        model = network(width, parametrization, activation)
        truth = torch.tensor([hessian_norm(model, s) for s in x], dtype=torch.float64)
        net = SmoothMLP.from_module(model)
        # `tight` treats each sample by itself; `fast` shares its norms among all thousand.
        tight, fast = BallBounds(net, x, method="tight"), BallBounds(net, everything, method="fast")
        ratios = [
            float((b.over(r).hessians[:SAMPLES, 0] / truth).max()) for b, r in ((tight, 0.0), (fast, 0.0), (fast, 1e-4))
        ]
        lines.append(
            f"| {width} | {activation} | {parametrization} | {float(truth.mean()):.3g} "
            f"| {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |"
        )
    lines += ["", "| m | method | bounds, s | ten passes, s | SVD of m × m, s |", "|---:|---|---:|---:|---:|"]
    for width, method in ((64, "tight"), (256, "tight"), (64, "fast"), (256, "fast"), (1024, "fast")):
        ours, passes, svd = seconds(width, method)
        lines.append(f"| {width} | {method} | {ours:.2f} | {passes:.2f} | {svd:.3f} |")
    return "\n".join(lines)
