"""Linear maps with weights: fully connected layers and two-dimensional convolutions (docs/theory.md, section 10).

Both are z = W A + b with A the columns that the weights meet: the vectors at each position, or the patches of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.certificate.graph.convolution import convolution_norm_upper
from lplr_cli.certificate.graph.nodes import Form, Node, Values, folded
from lplr_cli.certificate.graph.state import Ahead, Behind, Here, Measured, Tangent, up, up_float
from lplr_cli.certificate.network import euclidean
from lplr_cli.certificate.norms import frobenius_upper, norm_upper, operator_norms
from lplr_cli.linalg import gamma

# Tangents whose patches are written out at a time.
_TOGETHER = 16


@dataclass(frozen=True)
class Convolution:
    """Geometry of a two-dimensional convolution; rectangles are (h, w)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    @property
    def overlap(self) -> int:
        """In how many patches a pixel can be."""
        return math.prod(-(-k // s) for k, s in zip(self.kernel, self.stride, strict=True))


@dataclass(frozen=True)
class Weighted(Node):
    """z = W A + b.

    Attributes:
        weight, bias: names of the parameters; no bias where None.
        block: index of its block of parameters; None where nothing of it is trained.
        weight_trained, bias_trained: what θ has of it.
        positions: columns of A.
        outputs_per_group: rows of W, for each group of channels.
        convolution: None for a fully connected layer, whose input has the features last.
    """

    weight: str
    bias: str | None
    block: int | None
    weight_trained: bool
    bias_trained: bool
    positions: int
    outputs_per_group: int
    convolution: Convolution | None = None

    def value(self, values: Values, *below: Tensor) -> Tensor:
        """As in :class:`Node`."""
        bias = None if self.bias is None else values[self.bias]
        if self.convolution is None:
            return F.linear(below[0], values[self.weight], bias)
        c = self.convolution
        return F.conv2d(below[0], values[self.weight], bias, c.stride, c.padding, 1, c.groups)

    def columns(self, x: Tensor) -> Tensor:
        """A of each sample and group, (n, g, k, T)."""
        if self.convolution is None:
            return x.reshape(len(x), 1, -1, x.shape[-1]).mT
        c = self.convolution
        patches: Tensor = F.unfold(x, c.kernel, padding=c.padding, stride=c.stride)
        return patches.reshape(len(x), c.groups, -1, patches.shape[-1])

    def outputs(self, z: Tensor) -> Tensor:
        """What goes with the columns, from (…, *shape of z): (…, g, o, T)."""
        if self.convolution is None:
            return z.reshape(*z.shape[:2], 1, -1, z.shape[-1]).mT
        return z.reshape(*z.shape[:2], self.convolution.groups, -1, z.shape[-2] * z.shape[-1])

    def constants(self, values: Values, *shapes: torch.Size) -> dict[str, float]:
        """``norm`` ≥ ||W||_op, ``frobenius``, ``row`` and ``row_sum`` of the largest row of W, ``bias``."""
        w = values[self.weight]
        if self.convolution is None:
            norm = norm_upper(w)
        else:
            c = self.convolution
            norm = convolution_norm_upper(w, (shapes[0][-2], shapes[0][-1]), c.stride, c.padding, c.groups)
        rows = w.flatten(1)
        found = {
            "norm": norm,
            "frobenius": frobenius_upper(w),
            "row": float(euclidean(rows).max()),
            "row_sum": float(rows.abs().sum(dim=1).max()),
            "bias": 0.0 if self.bias is None else frobenius_upper(values[self.bias]),
            "terms": float(rows.shape[1]),
            "backward_terms": float(w[:, 0].numel()),
        }
        return {k: up_float(v) for k, v in found.items()}

    @property
    def overlap_root(self) -> float:
        """||A(x)||_F ≤ this times ||x||."""
        return 1.0 if self.convolution is None else math.sqrt(self.convolution.overlap)

    def measure(self, *below: Tensor) -> Measured:
        """``own`` ≥ ||[A; 1]||_op and ``column``, the longest column of it, as far as trained."""
        lead = self._lead(below[0])
        return {"own": _norms(lead), "column": up(lead.square().sum(dim=2).amax(dim=(1, 2)).sqrt())}

    def weigh(self, adjoint: Tensor, *below: Tensor) -> Measured:
        """``gradient``: ||∂f_c/∂(W, b)||; ``group``: ≥ the largest ||λ̂||_op of a group, outputs by positions."""
        s = self.outputs(adjoint)
        square = torch.zeros(s.shape[:2], dtype=s.dtype)
        if self.weight_trained:
            square = square + (s @ self.columns(below[0])[:, None].mT).square().sum(dim=(2, 3, 4))
        if self.bias_trained:
            square = square + s.sum(dim=4).square().sum(dim=(2, 3))
        return {"gradient": square.sqrt(), "group": _norms(s)}

    def _grouped(self, here: Here, above: Behind) -> Tensor:
        """≥ ||λ||_op of the largest group over the ball, (n, C): what a change of the weights can meet."""
        return torch.minimum(above.size, here.measured["group"] + above.reach(here.radius))

    def _moved(self, here: Here) -> tuple[float, float, float]:
        """||W||_op, ||W||_F and ||b|| over the ball."""
        moved = here.radius if self.weight_trained else 0.0
        c = here.constants
        bias = c["bias"] + (here.radius if self.bias_trained else 0.0) if self.bias is not None else 0.0
        return c["norm"] + self.overlap_root * moved, c["frobenius"] + moved, bias

    def own(self, here: Here, x: Ahead) -> Tensor:
        """≥ ||∂z/∂(W, b)||_op over the ball, (n,)."""
        moved = self.overlap_root * x.reach(here.radius) if self.weight_trained else 0.0
        return up(here.measured["own"] + moved)

    def ahead(self, here: Here, *below: Ahead) -> Ahead:
        """Dz = dW A + W DA + db, own and lower blocks apart."""
        x, c = below[0], here.constants
        gain, frobenius, bias = self._moved(here)
        moved = here.radius if self.weight_trained else 0.0
        row, row_sum = c["row"] + moved, c["row_sum"] + math.sqrt(c["terms"]) * moved
        blocks, rows = gain * x.blocks, torch.minimum(row * x.blocks, row_sum * x.rows)
        second, drift = gain * x.second, gain * x.drift
        if self.weight_trained:
            second = second + self.overlap_root * x.norm
            drift = drift + self.overlap_root * moved * x.blocks
        if self.block is not None:
            if self.weight_trained:
                drift[:, self.block] += self.overlap_root * x.reach(here.radius)
            blocks[:, self.block] += self.own(here, x)
            rows[:, self.block] += here.measured["column"] + (x.reach(here.radius) if self.weight_trained else 0.0)
        spread = math.sqrt(self.positions) * bias
        size = gain * x.size + spread
        grown = gamma(int(c["terms"]) + 8, torch.float64)
        error = gain * x.error + grown * (self.overlap_root * frobenius * (x.size + x.error) + spread)
        return Ahead(up(size), up(error), up(blocks), up(rows), up(second), up(drift))

    def push(self, values: Values, tangents: tuple[Tensor | None, ...], below: tuple[Tensor, ...]) -> Tensor:
        """W times each tangent; those of its own parameters begin here, see :meth:`directions`."""
        (x,) = tangents
        assert x is not None
        return folded(lambda t: self.value({self.weight: values[self.weight], **self._no_bias(values)}, t), x)

    def _no_bias(self, values: Values) -> dict[str, Tensor]:
        return {} if self.bias is None else {self.bias: torch.zeros_like(values[self.bias])}

    def push_error(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> Tensor:
        """As of the values."""
        gain, frobenius, _ = self._moved(here)
        grown = gamma(int(here.constants["terms"]) + 8, torch.float64)
        return up(gain * error + grown * self.overlap_root * frobenius * (size + error))

    def leading(self, x: Tensor, count: int) -> Tensor:
        """V (n, g, k, r): the r leading left singular vectors of A₁ = [A; 1], nearly.

        Args:
            x: what the layer meets, (n, …).
            count: r times the outputs at most, where there are not more of these.
        """
        a = self._lead(x)
        _, g, k, t = a.shape
        rank = min(k, t, max(1, count // (self.outputs_per_group * g)))
        found: Tensor = torch.linalg.eigh(a @ a.mT).eigenvectors[..., -rank:]
        return found

    def rest(self, x: Tensor, v: Tensor) -> Measured:
        """What V leaves of A₁ᵀ = A₁ᵀVVᵀ + A₁ᵀ(I − VVᵀ), whatever V is.

        ``own`` and ``column`` are as in :meth:`measure`, of A₁ᵀ(I − VVᵀ); ``skew`` ≥ ||VᵀV − I||.
        """
        a, (k, rank) = self._lead(x), v.shape[2:]
        rest = a - v @ (v.mT @ a)
        slack = self._product_rounding(a, k, rank)
        column = rest.square().sum(dim=2).amax(dim=(1, 2)).sqrt()
        skew = torch.linalg.matrix_norm(v.mT @ v - torch.eye(rank, dtype=v.dtype)).amax(dim=1)
        skew = skew + 4 * rank * gamma(k + 8, v.dtype)
        return {"own": up(_norms(rest) + slack), "column": up(column + slack), "skew": up(skew)}

    def directions(self, x: Tensor, v: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Tangents e_o ⊗ A₁ᵀV of the output, (n, D, *shape), and ≥ the Frobenius norm of their rounding, (n,)."""
        a = self._lead(x)
        n, g, k, t = a.shape
        rank, outputs = v.shape[3], self.outputs_per_group
        moved = a.mT @ v
        spread = torch.zeros((n, g, outputs, rank, g, outputs, t), dtype=a.dtype)
        for group in range(g):
            for o in range(outputs):
                spread[:, group, o, :, group, o] = moved[:, group].mT
        error = math.sqrt(g * outputs) * self._product_rounding(a, k, rank)
        found = spread.reshape(n, g * outputs * rank, g, outputs, t)
        return self._as_output(found, shape), up(error)

    @staticmethod
    def _product_rounding(a: Tensor, length: int, rank: int) -> Tensor:
        """Of VᵀA₁ and V(VᵀA₁) in Frobenius norm, the columns of V being of length one at most, nearly."""
        return 4 * rank * gamma(2 * length + 16, a.dtype) * a.square().sum(dim=(1, 2, 3)).sqrt()

    def _as_output(self, s: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`outputs`."""
        if self.convolution is None:
            return s.mT.reshape(*s.shape[:2], *shape)
        return s.reshape(*s.shape[:2], *shape)

    def _lead(self, x: Tensor) -> Tensor:
        """[A; 1] as far as trained, (n, g, k, T)."""
        a = self.columns(x)
        lead = a if self.weight_trained else a[:, :, :0]
        if self.bias_trained:
            lead = torch.cat([lead, lead.new_ones((*a.shape[:2], 1, a.shape[3]))], dim=2)
        return lead

    def behind(self, here: Here, above: Behind, *below: Ahead) -> tuple[tuple[Tensor, Tensor], ...]:
        """λ_x = Wᵀ λ_z, which moves with W as well."""
        gain, _, _ = self._moved(here)
        blocks = gain * above.blocks
        if self.weight_trained and self.block is not None:
            blocks[:, :, self.block] += self.overlap_root * self._grouped(here, above)
        return ((up(gain * above.size), up(blocks)),)

    def errors(self, here: Here, size: Tensor, error: Tensor, *below: Ahead) -> tuple[Tensor, ...]:
        """What came in passes as an exact linear map, and sums of products are rounded."""
        gain, frobenius, _ = self._moved(here)
        grown = gamma(int(here.constants["backward_terms"]) + 8, torch.float64)
        return (up(gain * error + grown * self.overlap_root * frobenius * (size + error)),)

    def gradient(self, here: Here, above: Behind, *below: Ahead) -> Tensor | None:
        """||λ [A; 1]ᵀ||_F ≤ ||λ|| ||[A; 1]||_op."""
        return None if self.block is None else up(above.size * self.own(here, below[0])[:, None])

    def gradient_error(self, here: Here, size: Tensor, error: Tensor, terms: int, *below: Ahead) -> list[Tensor]:
        """Of λ Aᵀ and of λ 1, as far as trained: errors of both factors, and the sum over positions and samples."""
        x, found = below[0], []
        grown = gamma(terms * self.positions + 256, torch.float64)
        if self.weight_trained:
            a_error, a_size = self.overlap_root * x.error[:, None], self.overlap_root * (x.size + x.error)[:, None]
            own = self.own(here, x)[:, None]
            found.append(up(error * (own + a_error) + size * a_error + grown * (size + error) * a_size))
        if self.bias_trained:
            found.append(up(math.sqrt(self.positions) * (error + grown * (size + error))))
        return found

    def form(self, here: Here, above: Behind, *below: Ahead) -> Form | None:
        """2 ⟨λ_z, dW Dx⟩, a product of the own block with those below; and its derivative."""
        if not self.weight_trained or self.block is None:
            return None
        x, size = below[0], self._grouped(here, above)
        cross = self.overlap_root * size[:, :, None] * x.blocks[:, None]
        matrix = cross.new_zeros((*cross.shape, cross.shape[2]))
        matrix[:, :, self.block] += cross
        matrix[:, :, :, self.block] += cross
        third = self.overlap_root * (above.norm * x.norm[:, None] + size * x.second[:, None])
        return Form(up(matrix), up(third))

    def met(self, adjoint: Tensor, tangent: Tensor) -> Tensor:
        """λ Xᵀ of each tangent of the input, (n, C, D, weights): what a change of W meets at θ_0."""
        s, found = self.outputs(adjoint), []
        for part in torch.split(tangent, _TOGETHER, dim=1):
            x = self.columns(part.flatten(0, 1))
            x = x.reshape(*part.shape[:2], *x.shape[1:])
            found.append(torch.einsum("ncgot,ndgkt->ncdgok", s, x).flatten(3))
        return torch.cat(found, dim=2)

    def spread(self, here: Here, above: Behind, below: list[Ahead], tangents: list[Tangent]) -> Tensor | None:
        """Of 2 ⟨λ, dW Dx⟩ and λ̂ X̂ᵀ."""
        if not self.weight_trained or self.block is None:
            return None
        (x,), root = tangents, self.overlap_root
        rounding = gamma(self.positions + 16, torch.float64) * (above.size + above.error)
        parts = ((self._grouped(here, above), x.rest), (above.reach(here.radius), x.size), (rounding, x.frobenius))
        cross = sum(root * size[:, :, None] * t[:, None] for size, t in parts)
        assert isinstance(cross, Tensor)
        matrix = cross.new_zeros((*cross.shape, cross.shape[2]))
        matrix[:, :, self.block] += cross
        matrix[:, :, :, self.block] += cross
        return up(matrix)


def _norms(a: Tensor) -> Tensor:
    """≥ ||A||_op of the largest group of each sample, (…, g, k, T) → (…,)."""
    return up(operator_norms(a.flatten(0, -3)).reshape(a.shape[:-2]).amax(dim=-1))
