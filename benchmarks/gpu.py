"""``python -m benchmarks.gpu``: the tables of a GPU as Markdown on stdout; ``--small`` the same code at toy sizes.

Every figure stands beside what the same card does at most: the rate of a matrix product measured in the same run, TF32
off. ``--device cpu --small`` tries the code where there is no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kernel import contraction
from lplr_cli.losses import Loss
from lplr_cli.models import ModelSpec, build_model
from lplr_cli.ntk import Network, NTKOperator, empirical_ntk, kernel_spectrum
from lplr_cli.training.flat import FlatParameters
from lplr_cli.training.loss import share_of_loss


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    gemm: int = 8192
    samples: int = 10_000
    width: int = 4096
    digits: int = 11_982
    images: int = 1_000
    channels: int = 64
    steps: int = 100
    memory: int = 24 << 30


SMALL = Sizes(256, 200, 64, 300, 4, 8, 5, 1 << 30)


@dataclass(frozen=True)
class Bench:
    """A device and what to measure on it."""

    device: str
    sizes: Sizes

    def seconds(self, call: Callable[[], Any], rounds: int = 3) -> float:
        """Median of some calls, the device waited for, after one to warm up."""
        times = []
        for _ in range(rounds + 1):
            self.wait()
            begun = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - begun)
        return statistics.median(times[1:])

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self, dtype: torch.dtype) -> float:
        """Operations a second of a square matrix product."""
        m = self.sizes.gemm
        a = torch.randn((m, m), dtype=dtype, device=self.device)
        return 2 * m**3 / self.seconds(lambda: a @ a)

    def mlp(self, width: int, dtype: torch.dtype) -> Network:
        """784-m×4-1."""
        return Network.from_module(build_model(ModelSpec(width=width), (784,), 1), dtype=dtype, device=self.device)

    def inputs(self, count: int, dtype: torch.dtype) -> Tensor:
        """Random ones, the same every time."""
        x = torch.rand((count, 784), generator=torch.Generator().manual_seed(0))
        return x.to(self.device, dtype)


def gram(bench: Bench) -> list[str]:
    """K in float32 and float64 against the product's rate; half of the products is what symmetry leaves."""
    lines = ["| K of 784-m×4-1 | s | TFLOP/s | of GEMM |", "|---|---:|---:|---:|"]
    n, m = bench.sizes.samples, bench.sizes.width
    passes = 2 * 2 * n * (784 * m + 3 * m * m)
    for dtype in (torch.float32, torch.float64):
        network, x = bench.mlp(m, dtype), bench.inputs(n, dtype)
        took = bench.seconds(lambda network=network, x=x: empirical_ntk(network, x, memory=bench.sizes.memory))  # type: ignore[misc]
        rate = (passes + n * n * (784 + 8 * m)) / took
        name = str(dtype).removeprefix("torch.")
        lines.append(
            f"| n = {n:,}, m = {m:,}, {name} | {took:.3f} | {rate / 1e12:.2f} | {rate / bench.peak(dtype):.0%} |"
        )
    return lines


def spectrum(bench: Bench) -> list[str]:
    """λ_min with its bound; the factorisation of the bound is the CPU's."""
    network, x = bench.mlp(128, torch.float64), bench.inputs(bench.sizes.digits, torch.float64)
    begun = time.perf_counter()
    found = kernel_spectrum(network, x, verify=True, memory=bench.sizes.memory).spectrum
    took = time.perf_counter() - begun
    lower = "–" if found.lambda_min_lower is None else f"{found.lambda_min_lower / found.lambda_min:.4f}"
    head = ["| verified λ_min | s | bound / λ_min |", "|---|---:|---:|"]
    return [*head, f"| n = {bench.sizes.digits:,}, float64 | {took:.1f} | {lower} |"]


def resnet(bench: Bench) -> list[str]:
    """Five outputs."""
    spec = ModelSpec(kind="resnet", width=bench.sizes.channels)
    network = Network.from_module(build_model(spec, (3, 32, 32), 5), dtype=torch.float32, device=bench.device)
    x = torch.rand((bench.sizes.images, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(bench.device)
    took = bench.seconds(lambda: empirical_ntk(network, x, memory=bench.sizes.memory), rounds=1)
    name = f"{network.parameter_count:,} parameters, n = {len(x):,}, five outputs"
    return ["| ResNet | s |", "|---|---:|", f"| {name} | {took:.1f} |"]


def overhead(bench: Bench) -> list[str]:
    """Steps with gradient norm and drift against steps without."""
    width = min(512, bench.sizes.width)
    module = build_model(ModelSpec(width=width), (784,), 1, dtype=torch.float32).to(bench.device)
    x = bench.inputs(min(1000, bench.sizes.samples), torch.float32)
    y = x[:, :1].contiguous()
    flat = FlatParameters(module)
    start = flat.theta.clone()

    def steps(measured: bool) -> None:
        for _ in range(bench.sizes.steps):
            flat.grad.zero_()
            share = share_of_loss(Loss(), module, x, y, len(x))
            share.backward()  # type: ignore[no-untyped-call]
            if measured:
                _ = float(share.detach()), flat.grad_norm_sq(), flat.drift(start)
            with torch.no_grad():
                flat.theta.add_(flat.grad, alpha=-1e-4)

    plain, measured = bench.seconds(lambda: steps(False)), bench.seconds(lambda: steps(True))
    return [
        "| training | ratio |",
        "|---|---:|",
        f"| loss, gradient norm and drift every step | {measured / plain:.3f} |",
    ]


def products(bench: Bench) -> list[str]:
    """K v, and K by the contraction of torch.func's tutorial; curvlinops where it is installed."""
    m, n = min(512, bench.sizes.width), min(500, bench.sizes.samples)
    network, x = bench.mlp(m, torch.float32), bench.inputs(n, torch.float32)
    operator, v = NTKOperator(network, x), np.ones(n)
    module = build_model(ModelSpec(width=m), (784,), 1, dtype=torch.float32).to(bench.device)
    lines = [f"| 784-{m}×4-1, n = {n} | s |", "|---|---:|"]
    candidates: dict[str, Callable[[], Any]] = {
        "lplr, K v": lambda: operator @ v,
        "lplr, K": lambda: empirical_ntk(network, x),
        "torch.func, K": lambda: contraction(module, x, chunk=50),
    }
    down_up = _curvlinops(module, x)
    if down_up is not None:
        candidates["curvlinops, K v"] = down_up
    return [*lines, *(f"| {name} | {bench.seconds(call):.5f} |" for name, call in candidates.items())]


def _curvlinops(module: nn.Module, x: Tensor) -> Callable[[], Any] | None:
    try:
        import curvlinops  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    params = [p for p in module.parameters() if p.requires_grad]
    data = [(x, torch.zeros((len(x), 1), device=x.device))]
    down = curvlinops.TransposedJacobianLinearOperator(module, params, data, check_deterministic=False)
    up = curvlinops.JacobianLinearOperator(module, params, data, check_deterministic=False)
    v = torch.ones(len(x), device=x.device)
    return lambda: up @ (down @ v)


def report(bench: Bench) -> Iterator[str]:
    """The tables one after another."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    cpu = f"{bench.device}, {torch.get_num_threads()} threads"
    yield f"{torch.cuda.get_device_name() if bench.device == 'cuda' else cpu}, torch {torch.__version__}, TF32 off"
    for part in (gram, spectrum, resnet, overhead, products):
        yield "\n".join(part(bench))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    said = parser.parse_args()
    if said.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: --device cpu --small tries the code")
    for table in report(Bench(said.device, SMALL if said.small else Sizes())):
        print(f"{table}\n", flush=True)
