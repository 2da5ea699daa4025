"""Products with the Hessian by other libraries; run by its own Python, which LPLR_BENCH_HESSIAN_PYTHON names.

Needs torch, PyHessian 0.1, curvlinops-for-pytorch 3.0.1 and hessian-eigenthings 1.0.0a5. All candidates and lplr's
product, whose checkout is in reach, take turns in one process, so that their ratios mean something.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings

import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings import HessianOperator, lanczos, supervised_loss
from pyhessian import hessian
from pyhessian.utils import hessian_vector_product
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from lplr_cli.curvature import LossCurvature, largest
from lplr_cli.ntk import Network


def turns(candidates, rounds):
    """Median CPU seconds of each, after one call to warm up: other work on the machine then counts less."""
    for run in candidates.values():
        run()
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            begun = time.process_time()
            run()
            times[name].append(time.process_time() - begun)
    return {name: statistics.median(spent) for name, spent in times.items()}


def problem(width):
    """A classifier of random digits' size, with its data."""
    torch.manual_seed(0)
    sizes = [784, *[width] * 3]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.rand(500, 784), torch.randint(0, 10, (500,))


def per_sample(f, y):
    """Cross-entropy of integer classes, as lplr takes a loss of the user's."""
    return nn.functional.cross_entropy(f, y, reduction="none")


def products(width, rounds):
    """Seconds of a product by each library, on the same vector, which all must map alike."""
    model, x, y = problem(width)
    network = Network.from_module(model, dtype=torch.float32)
    ours = LossCurvature(network, x, y, per_sample)
    v = torch.rand(ours.size)
    parts = [
        p.view_as(q) for p, q in zip(v.split([q.numel() for q in model.parameters()]), model.parameters(), strict=True)
    ]
    theirs = hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    things = HessianOperator(model, [(x, y)], supervised_loss(nn.CrossEntropyLoss()))
    linops = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False
    )
    doubles = v.double().numpy()
    candidates = {
        "lplr": lambda: ours.hessian(doubles),
        "PyHessian": lambda: hessian_vector_product(theirs.gradsH, theirs.params, parts),
        "eigenthings": lambda: things.matvec(v),
        "curvlinops": lambda: linops @ v,
    }
    images = [torch.as_tensor(candidates[k]()) for k in ("lplr", "eigenthings", "curvlinops")]
    assert all(torch.allclose(i.float(), images[0].float(), rtol=1e-3, atol=1e-5) for i in images)
    return turns(candidates, rounds)


def accuracy(width):
    """Products until λ_max, and its relative error, by each library's own way with its own defaults."""
    model, x, y = problem(width)
    found, count = {}, 0

    def counted(call):
        def wrapped(*arguments, **named):
            nonlocal count
            count += 1
            return call(*arguments, **named)

        return wrapped

    network = Network.from_module(model, dtype=torch.float32)
    ours = LossCurvature(network, x, y, per_sample)
    truth = largest(ours.hessian, ours.size, tolerance=1e-9, max_products=200).value
    mine = largest(ours.hessian, ours.size)
    found["lplr"] = [mine.products, abs(mine.value / truth - 1)]
    module = sys.modules["pyhessian.hessian"]
    module.hessian_vector_product = counted(hessian_vector_product)
    value = hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues()[0][0]
    found["PyHessian"] = [count, abs(value / truth - 1)]
    things = HessianOperator(model, [(x, y)], supervised_loss(nn.CrossEntropyLoss()))
    count, things.matvec = 0, counted(things.matvec)
    value = float(lanczos(things, k=1, max_iter=100, which="LA").eigenvalues[0])
    found["eigenthings"] = [count, abs(value / truth - 1)]
    linops = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False
    ).to_scipy()
    count = 0
    wrapped = LinearOperator(linops.shape, matvec=counted(linops.matvec), dtype=linops.dtype)
    value = float(eigsh(wrapped, k=1, which="LA", tol=1e-3, return_eigenvectors=False)[0])
    found["curvlinops + eigsh"] = [count, abs(value / truth - 1)]
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    print(json.dumps({"product": {w: products(w, rounds) for w in (128, 512)}, "lambda_max": accuracy(128)}))
