"""Prints the reference of ``neural_tangents.json``: kernels and predictions by neural-tangents, in float64.

Run by a Python of its own that has jax 0.4.20, neural-tangents 0.6.5, numpy < 2 and scipy < 1.13 (``make bench-peers``
makes one in .venv-tangents). Their loss is half the mean over all samples and outputs, their time η t of the flow.
"""

import json
from typing import Any

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)  # before anything is computed

import jax.numpy as jnp  # noqa: E402
import neural_tangents as nt  # noqa: E402

TIMES = [0.0, 0.5, 4.0, 30.0]


def forward(params: Any, x: Any) -> Any:
    """3-5-2 with tanh."""
    (w, b), (v, c) = params
    return jnp.tanh(x @ w + b) @ v + c


def reference() -> Any:
    """Everything that the test needs, as plain numbers."""
    random = np.random.default_rng(0)
    params = [(random.standard_normal((3, 5)), random.standard_normal(5)), (random.standard_normal((5, 2)), np.ones(2))]
    x, others, y = random.standard_normal((6, 3)), random.standard_normal((4, 3)), random.standard_normal((6, 2))
    kernel = nt.empirical_ntk_fn(forward, trace_axes=())
    train, cross = kernel(x, None, params), kernel(others, x, params)
    predict = nt.predict.gradient_descent_mse(train, y, trace_axes=())
    after = [predict(t, forward(params, x), forward(params, others), cross) for t in TIMES]
    found = {
        "params": [[w, b] for w, b in params],
        "x": x,
        "others": others,
        "y": y,
        # (n, n, C, C) → (nC, nC), samples outside.
        "kernel": train.transpose(0, 2, 1, 3).reshape(12, 12),
        "cross": cross.transpose(0, 2, 1, 3).reshape(8, 12),
        "times": TIMES,
        "train": [a for a, _ in after],
        "test": [b for _, b in after],
    }
    return jax.tree_util.tree_map(lambda a: np.asarray(a).tolist(), found)


if __name__ == "__main__":
    print(json.dumps(reference()))
