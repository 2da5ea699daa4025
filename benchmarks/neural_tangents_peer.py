"""Times neural-tangents on the benchmark's MLP; run by its own Python, which LPLR_BENCH_NT_PYTHON names.

Needs jax 0.4.20, neural-tangents 0.6.5, numpy < 2 and scipy < 1.13, none of which this project installs.
"""

import json
import time

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np


def forward(params, x):
    """784-m×4-1 with softplus."""
    for w, b in params[:-1]:
        x = jax.nn.softplus(x @ w + b)
    w, b = params[-1]
    return x @ w + b


if __name__ == "__main__":
    x = np.random.default_rng(0).random((500, 784), dtype=np.float32)
    found = {}
    for width in (128, 512):
        sizes = [784, *[width] * 4, 1]
        keys = jax.random.split(jax.random.PRNGKey(0), 5)
        params = [
            (jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        kernel = jax.jit(
            nt.empirical_ntk_fn(
                forward, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES
            )
        )
        kernel(x, None, params).block_until_ready()
        times = []
        for _ in range(15):
            begun = time.perf_counter()
            kernel(x, None, params).block_until_ready()
            times.append(time.perf_counter() - begun)
        found[width] = min(times)
    print(json.dumps(found))
