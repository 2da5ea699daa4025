"""Times nngeometry and curvlinops on the benchmark's MLP; run by its own Python, which LPLR_BENCH_PEERS_PYTHON names.

Needs torch, nngeometry 0.4 and curvlinops-for-pytorch 3.0.1, of which this project installs the first alone.
"""

import itertools
import json
import time

import torch
from curvlinops import JacobianLinearOperator, TransposedJacobianLinearOperator
from nngeometry.gram import GramMatrix
from torch import nn


def best(call, rounds=7):
    """Least seconds of a call, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.rand(500, 784)
    found = {"nngeometry": {}, "curvlinops_product": {}}
    for width in (128, 512):
        sizes = [784, *[width] * 4]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Softplus())]
        model = nn.Sequential(*layers, nn.Linear(width, 1))

        def gram(model=model):
            return GramMatrix(model, (x,)).data

        params = [p for p in model.parameters() if p.requires_grad]
        data = [(x, torch.zeros(500, 1))]
        down = TransposedJacobianLinearOperator(model, params, data, check_deterministic=False)
        up = JacobianLinearOperator(model, params, data, check_deterministic=False)
        v = torch.rand(500)
        found["nngeometry"][width] = best(gram)
        found["curvlinops_product"][width] = best(lambda up=up, down=down, v=v: up @ (down @ v))
    print(json.dumps(found))
