"""The smallest eigenvalue where few vectors fit: the Rayleigh quotient minimised by conjugate gradients.

Each step takes the minimum over the span of the iterate, its preconditioned residual and the step before (locally
optimal: Knyazev, SIAM J. Sci. Comput. 23, 2001), at one product. A kernel has few large eigenvalues Θ above a bulk, and
their Ritz vectors Y are cheap: the preconditioner I − Y(1 − s/Θ)Yᵀ leaves the condition of the bulk. On the kernel of
1,000 digits (condition 2e7), with room for 60 vectors, 600 products bring it within 8 % of λ_min, inverse iteration
with the same conjugate gradients inside within 17 %, restarted Lanczos within 9 % after 1,000; Lanczos with room for
all its vectors is within 2 % after 300.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplr_cli.errors import NumericalError

Vector = NDArray[np.float64]
Product = Callable[[Vector], Vector]
# Steps between two products that renew K x, which is carried along by linear combination otherwise.
_RENEW = 25
# The preconditioner makes the eigenvalues of the top like this part of the smallest of them.
_BELOW = 3.0


@dataclass(frozen=True)
class Lowest:
    """An estimate of λ_min from above.

    Attributes:
        value: the Rayleigh quotient θ.
        residual: ||K y − θ y|| of its unit vector y, from a product: an eigenvalue lies within it.
        products: spent.
    """

    value: float
    residual: float
    products: int


def lowest(
    product: Product,
    start: Vector,
    top: NDArray[np.float64],
    top_values: Vector,
    *,
    products: int,
    tolerance: float = 1e-6,
    progress: Callable[[int, int], None] | None = None,
) -> Lowest:
    """The smallest eigenvalue of a symmetric operator, without a basis.

    Args:
        product: v (N,) → K v.
        start: where to begin, not zero (N,).
        top: orthonormal approximate eigenvectors of the largest eigenvalues (t, N), t ≥ 0. How good they are decides
            how fast the iteration is, and nothing else.
        top_values: theirs, positive (t,).
        products: at most, at least 2.
        tolerance: residual relative to the value at which to stop.
        progress: called with (products done, products at most).

    Raises:
        NumericalError: a product that is not finite.
    """
    damping = 1 - top_values.min(initial=np.inf) / (_BELOW * top_values)
    spent = 0

    def apply(v: Vector) -> Vector:
        nonlocal spent
        spent += 1
        if progress is not None:
            progress(spent, products)
        image = product(v)
        if not np.isfinite(image).all():
            raise NumericalError("a product with a vector is not finite", "check the parameters and the data")
        return image

    # Orthonormal: the iterate and, after the first, the direction of the step to it; and their images.
    span = (start / np.linalg.norm(start))[None]
    images = apply(span[0])[None]
    renewed = 0
    while True:
        theta = float(span[0] @ images[0])
        residual = images[0] - theta * span[0]
        small = float(np.linalg.norm(residual)) <= tolerance * abs(theta)
        if spent + 2 > products or (small and renewed == spent):
            break
        if small or spent - renewed >= _RENEW:
            images[0], renewed = apply(span[0]), spent
            continue
        search = residual - top.T @ (damping * (top @ residual))
        for _ in range(2):
            search = search / np.linalg.norm(search)
            search -= span.T @ (span @ search)
        search /= np.linalg.norm(search)
        span, images = np.stack([*span, search]), np.stack([*images, apply(search)])
        turn = _turn(span @ images.T)
        span, images = turn @ span, turn @ images
    x = span[0] / np.linalg.norm(span[0])
    image = apply(x)
    theta = float(x @ image)
    return Lowest(theta, float(np.linalg.norm(image - theta * x)), spent)


def _turn(projected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal (2, j): the smallest eigenvector c of the projection (j, j), and what of it is new beside the first
    coordinate, made orthogonal to it.
    """
    c: Vector = np.linalg.eigh((projected + projected.T) / 2)[1][:, 0]
    new = c.copy()
    new[0] = 0.0
    new -= (new @ c) * c
    length = np.linalg.norm(new)
    return np.stack([c, new / length]) if length > 0 else c[None]
