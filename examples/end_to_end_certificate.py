"""A proof, before training, that gradient descent on real digits converges linearly, and the run that obeys it.

Two layers in NTK parametrisation, f(x) = m^{-1/2} Σ_j v_j softplus(w_j · x), v_j = ±1 fixed, units doubled with
opposite signs so that f(θ_0) = 0, on handwritten digits 3 and 8 averaged to 7 × 7 pixels and scaled to norm one.

    python examples/end_to_end_certificate.py                    # 4 digits, width 100,000
    python examples/end_to_end_certificate.py --width 60000      # a smaller net
    python examples/end_to_end_certificate.py --search           # smallest width for 4 digits, most digits at 200,000
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from lplr_cli.certificate import Certificate, Trajectory, certify, check_run
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.models import MLP

TRAINED = ["layers.0.weight"]


def digits(n: int) -> tuple[Tensor, Tensor]:
    """n embedded digits, half of them 3 and half 8: inputs (n, 49) of norm 7, targets ±1.

    The factor 7 is undone by the 1/√49 of the NTK parametrisation.
    """
    data = load_dataset(DataSpec("mnist"))
    images = torch.from_numpy(data.inputs).double().reshape(-1, 1, 28, 28)
    pooled = torch.nn.functional.avg_pool2d(images, 4).flatten(1)
    labels = torch.from_numpy(data.targets).double().reshape(-1) * 2 - 1
    chosen = torch.cat([(labels == sign).nonzero()[: n // 2, 0] for sign in (-1, 1)])
    x = pooled[chosen]
    return 7 * x / torch.linalg.vector_norm(x, dim=1, keepdim=True), labels[chosen, None]


def network(width: int, seed: int = 0) -> MLP:
    """The network with f(θ_0) = 0."""
    model = MLP(49, 1, width=width, depth=1, activation="softplus", parametrization="ntk").double()
    half = torch.randn((width // 2, 49), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sign = torch.ones((1, width // 2), dtype=torch.float64)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        parameters["layers.0.weight"].copy_(torch.cat([half, half]))
        parameters["layers.1.weight"].copy_(torch.cat([sign, -sign], dim=1))
    return model


def certificate(n: int, width: int) -> tuple[Certificate, MLP, Tensor, Tensor]:
    """The certificate at θ_0, with what it speaks of."""
    x, y = digits(n)
    model = network(width)
    return certify(model, x, y, names=TRAINED), model, x, y


def train(model: MLP, x: Tensor, y: Tensor, lr: float, steps: int) -> tuple[list[float], list[float]]:
    """Loss and drift of ``steps`` steps of gradient descent on the first layer."""
    weight = dict(model.named_parameters())[TRAINED[0]]
    start = weight.detach().clone()
    losses, drifts = [], []
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        losses.append(float(loss.detach()))
        drifts.append(float(torch.linalg.vector_norm(weight.detach() - start)))
        with torch.no_grad():
            weight.sub_(lr * gradient)
    return losses, drifts


def search() -> None:
    """How far the bounds reach."""
    low, high = 1_000, 100_000
    while high - low > 1_000:
        middle = (low + high) // 4 * 2
        if certificate(4, middle)[0].containment.holds:
            high = middle
        else:
            low = middle
    print(f"smallest certified width for 4 digits, to 1,000: {high:,}")
    n = 4
    while certificate(n + 2, 200_000)[0].containment.holds:
        n += 2
    print(f"most digits certified at width 200,000: {n}")


def main() -> int:
    """Certify, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--width", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    if options.search:
        search()
        return 0
    found, model, x, y = certificate(options.samples, options.width)
    print(f"n = {found.n}, P = {found.parameters:,}")
    print(f"lambda_0 >= {found.lambda_0_lower:.4e}   L_J <= {found.containment.at.l_j:.4e}   verified")
    need = found.lambda_0_lower / (4 * found.sqrt_loss_upper)
    print(f"containment needs L_J <= {need / 2:.4e} for eta = 1/beta, {need:.4e} for small steps")
    print(found.verdict)
    if not found.containment.holds:
        return 1
    lr = found.containment.eta_max
    losses, drifts = train(model, x, y, lr, options.steps)
    checked = check_run(found, Trajectory.of_descent(losses, drifts, lr))
    mu = found.containment.at.mu_jacobian
    assert mu is not None  # containment holds
    print(f"run: {checked.steps} steps with eta = {lr:.4g}, {checked.violations} violations")
    promised = losses[0] * (1 - lr * mu) ** (options.steps - 1)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4e}, promised at most {promised:.4e}")
    print(f"drift {max(drifts):.3f} of the {found.containment.at.radius:.3f} proved")
    print(f"half-life promised {math.log(2) / (lr * mu):.0f} steps")
    return 1 if checked.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
