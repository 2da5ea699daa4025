"""A smooth MLP at θ_0: forward and backward pass with their rounding, and norms of D̂z_l (docs/theory.md, section 5).

Everything here is about the floating-point numbers at θ_0, written with a hat, and how far the true values can be from
them. What holds over a ball is made from it in :mod:`lplr_cli.certificate.ball`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.network import MARGIN, SmoothMLP, check_magnitude, euclidean
from lplr_cli.certificate.norms import largest_eigenvalue_upper, norm_upper
from lplr_cli.certificate.shared import LayerAt, group_count, shared_curvature, similar
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS
from lplr_cli.linalg import gamma

# Forward and backward passes that the products of ``fast`` may cost.
_SHARED_PASSES = 5
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Back:
    """The backward pass at θ_0 into one hidden layer: ê_l = ∂f/∂a_l and its error, (n, C, m)."""

    e: Tensor
    e_error: Tensor


@dataclass(frozen=True)
class Norms:
    """Norms at θ_0, hatted: ≥ ||D̂z_l|| (n,), ||D̂a_l|| (n,), ||D̂z_lj|| (n, m), λ_max(√ŵ Ĝ √ŵ) (n, C), ŵ = |ê φ''(ẑ)|."""

    dz: Tensor
    da: Tensor
    dz_rows: Tensor
    weighted: Tensor

    def outwards(self) -> Norms:
        """Above the rounding of what they are made of."""
        grown = (t * (1 + MARGIN) for t in (self.dz, self.da, self.dz_rows, self.weighted))
        return Norms(*grown)


@dataclass(frozen=True)
class Gram:
    """Ĝ_l = D̂z_l D̂z_lᵀ of some samples: ``scalar`` (k,) times the identity where ``matrix`` (k, m, m) is None.

    ``error`` (k,) bounds the norm of what rounding changed.
    """

    matrix: Tensor | None
    scalar: Tensor
    error: Tensor

    def frobenius(self, size: int) -> Tensor:
        """||Ĝ_l||_F, (k,), of size × size matrices."""
        if self.matrix is None:
            return self.scalar * math.sqrt(size)
        result: Tensor = torch.linalg.matrix_norm(self.matrix)
        return result


class Centre:
    """What is known at θ_0.

    Args:
        network: the MLP at θ_0.
        x: inputs (n, d).

    Attributes:
        network, n, outputs, hidden: the MLP, samples, C, and hidden layers.
        passes: forward, a layer each.
        slopes: φ'(ẑ_l) of each hidden layer, (n, m).
        weight_norms, row_norms: ≥ ||W_l||_op, and the norms of its rows (m,).
        backs: backward, into each hidden layer.
        gradients: ≥ ||∇f_ic||, (n, C).
        jacobian_error: ≥ ||Ĵ_i - J_i||_F, (n,).
    """

    def __init__(self, network: SmoothMLP, x: Tensor) -> None:
        self.network = network
        self.n, self.outputs, self.hidden = len(x), len(network.layers[-1].weight), len(network.layers) - 1
        self.passes = network.passes(x)
        self.slopes = [network.activation.first(at.z) for at in self.passes[:-1]]
        self.weight_norms = [norm_upper(layer.weight) for layer in network.layers]
        self.row_norms = [euclidean(layer.weight) for layer in network.layers]
        self.backs, self.gradients, self.jacobian_error = self._backward_pass()

    def _backward_pass(self) -> tuple[list[Back], Tensor, Tensor]:
        """ê_l of each hidden layer, a bound of ||∇f_ic|| at θ_0 (n, C), and of ||Ĵ_i - J_i||_F (n,)."""
        layers = self.network.layers
        ones = torch.ones((self.n, self.outputs), dtype=torch.float64)
        wrong = self._block_error(self.hidden, ones, torch.zeros_like(ones))
        squares = self.own(self.hidden, self.passes[-1].a_norm)[:, None] * ones
        last = layers[-1]
        e = (last.scale * last.weight).expand(self.n, *last.weight.shape)
        e_error = (EPS * e).abs()
        backs: list[Back] = []
        for level in range(self.hidden - 1, -1, -1):
            check_magnitude(e.abs() + e_error, "gradients")
            backs.insert(0, Back(e, e_error))
            s, s_error = self.through(level, e, e_error)
            wrong = wrong + self._block_error(level, euclidean(s), euclidean(s_error))
            squares = squares + self.own(level, self.passes[level].a_norm)[:, None] * euclidean(s).square()
            w, c = layers[level].weight, layers[level].scale
            grown = gamma(w.shape[0] + 4, torch.float64)
            e = c * (s @ w)
            e_error = c * ((s_error + grown * (s.abs() + s_error)) @ w.abs()) * (1 + MARGIN)
        gradients = (squares.sqrt() + wrong.sqrt()) * (1 + MARGIN)
        return backs, gradients, wrong.sum(dim=1).sqrt() * (1 + MARGIN)

    def through(self, level: int, e: Tensor, e_error: Tensor) -> tuple[Tensor, Tensor]:
        """ŝ_l = φ'(ẑ) ê_l and its error, (n, C, m)."""
        at, d1 = self.passes[level], self.slopes[level][:, None]
        bend = self.network.activation.sup_second(at.z - at.z_error, at.z + at.z_error)
        d1_error = (bend * at.z_error + ELEMENTARY_ULPS * EPS * (1 + at.z.abs()))[:, None]
        s = d1 * e
        error = d1_error * (e.abs() + e_error) + d1.abs() * e_error + 2 * EPS * s.abs()
        return s, error * (1 + MARGIN)

    def _block_error(self, level: int, size: Tensor, size_error: Tensor) -> Tensor:
        """Squared error of the block of ∇f_ic that belongs to W_l and b_l, from ||ŝ_l|| and its error, (n, C)."""
        layer, at = self.network.layers[level], self.passes[level]
        error = torch.zeros_like(size)
        if layer.weight_trained:
            # What meets s is fl(c â): one more rounding, unless c is one.
            rounding = 0.0 if layer.scale == 1.0 else EPS
            a_error = (at.a_error + rounding * at.a_norm)[:, None]
            product = size_error * (at.a_norm[:, None] + a_error) + size * a_error
            error = error + (layer.scale * product).square()
        return error + size_error.square() if layer.bias_trained else error

    def own(self, level: int, a_bound: Tensor) -> Tensor:
        """Squared norm of the block of Dz_l that belongs to W_l and b_l themselves."""
        layer = self.network.layers[level]
        own = torch.zeros_like(a_bound)
        if layer.weight_trained:
            own = own + (layer.scale * a_bound).square()
        return own + 1.0 if layer.bias_trained else own

    def norms(self, method: str) -> list[Norms]:
        """The norms of each hidden layer, by ``tight`` or ``fast``.

        Raises:
            NoCertificateError: magnitudes outside the range of docs/theory.md, section 7.
        """
        if not self.hidden:
            return []
        found = self.exact() if method == "tight" and self.hidden > 1 else self._shared()
        for norms in found:
            check_magnitude(norms.dz[:, None], "derivatives")
        return found

    def bend(self, level: int, rows: slice) -> Tensor:
        """ŵ = |ê φ''(ẑ)| of some samples, (k, C, m)."""
        second = self.network.activation.second(self.passes[level].z[rows])
        return (self.backs[level].e[rows] * second[:, None]).abs()

    def _shared(self) -> list[Norms]:
        """From products of layers that similar samples share."""
        hidden = []
        for level in range(self.hidden):
            layer, own = self.network.layers[level], self.own(level, self.passes[level].a_norm)
            bend = self.bend(level, slice(None))
            hidden.append(LayerAt(layer.scale * layer.weight, self.slopes[level], own, bend))
        slopes = [h.slope for h in hidden[:-1]]
        flops = 6.0 * self.n * sum(layer.weight.numel() for layer in self.network.layers)
        count = group_count(self.n, [len(h.weight) for h in hidden], _SHARED_PASSES * flops)
        groups = similar(slopes, count) if slopes else torch.zeros(self.n, dtype=torch.long)
        found: list[Norms] = []
        for h, (dz, da, weighted) in zip(hidden, shared_curvature(hidden, groups), strict=True):
            lines = h.own[:, None]
            if found:
                lines = lines + (euclidean(h.weight)[None] * found[-1].da[:, None]).square()
            found.append(Norms(dz, da, lines.sqrt().expand_as(h.slope), weighted).outwards())
        return found

    def exact(self) -> list[Norms]:
        """From Ĝ_l of each sample, a chunk of samples at a time."""
        width = max(layer.weight.shape[0] for layer in self.network.layers[:-1])
        chunk = max(1, min(self.n, int(3e8 / (8 * 6 * width * width))))
        pieces = [self.exact_chunk(slice(i, min(self.n, i + chunk))) for i in range(0, self.n, chunk)]
        return [
            Norms(*(torch.cat([getattr(p[level], key) for p in pieces]) for key in ("dz", "da", "dz_rows", "weighted")))
            for level in range(self.hidden)
        ]

    def exact_chunk(self, rows: slice) -> list[Norms]:
        found: list[Norms] = []
        gram: Gram | None = None
        for level in range(self.hidden):
            gram = self.gram(level, rows, gram)
            found.append(self.gram_norms(level, rows, gram).outwards())
        return found

    def gram(self, level: int, rows: slice, below: Gram | None) -> Gram:
        """Ĝ_l by its recursion, with a bound of the rounding."""
        own = self.own(level, self.passes[level].a_norm[rows])
        if below is None:
            return Gram(None, own, torch.zeros_like(own))
        layer = self.network.layers[level]
        m = layer.scale * layer.weight * self.slopes[level - 1][rows][:, None]
        width, size = m.shape[2], m.square().sum(dim=(1, 2))
        g = below.scalar[:, None, None] * (m @ m.mT) if below.matrix is None else m @ below.matrix @ m.mT
        g = (g + g.mT) / 2
        g.diagonal(dim1=1, dim2=2).add_(own[:, None])
        # Rounding of the products in Frobenius norm, and what came from below.
        met = size * (below.frobenius(width) + below.error)
        error = (size * below.error + gamma(3 * width + 12, torch.float64) * (met + own)) * 1.01
        return Gram(g, below.scalar, error)

    def gram_norms(self, level: int, rows: slice, gram: Gram) -> Norms:
        """Verified bounds of the norms that are made of Ĝ_l."""
        d1, weights = self.slopes[level][rows].abs(), self.bend(level, rows)
        if gram.matrix is None:
            root = gram.scalar.sqrt()
            lines, weighted = root[:, None].expand_as(d1), gram.scalar[:, None] * weights.amax(dim=2)
            return Norms(root, root * d1.amax(dim=1), lines, weighted)
        g, error = gram.matrix, gram.error

        def scaled(r: Tensor) -> Tensor:
            """λ_max(diag(r) G diag(r)) for r (k, m), rounding included."""
            return largest_eigenvalue_upper(g * r[:, :, None] * r[:, None, :]) + error * r.amax(dim=1).square()

        return Norms(
            torch.sqrt(largest_eigenvalue_upper(g) + error),
            torch.sqrt(scaled(d1)),
            torch.sqrt(g.diagonal(dim1=1, dim2=2) + error[:, None]),
            torch.stack([scaled(weights[:, c].sqrt()) for c in range(self.outputs)], dim=1),
        )
