"""Upper bounds of the Lipschitz constant L_J of the Jacobian over a ball, for smooth MLPs (docs/theory.md, section 5).

All that depends on θ_0 alone is computed once; :meth:`BallBounds.over` then costs a few passes over the activations
for each radius. Quantities with a hat are those of floating-point numbers at θ_0. Everything else, true values at θ_0
included, is bounded by its distance from them: the distance grows with the drift inside the ball and starts from the
rounding of the forward and backward pass, so that the result bounds the exact constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lplr_cli.certificate.centre import Centre, Norms
from lplr_cli.certificate.network import MARGIN, SmoothMLP, euclidean
from lplr_cli.certificate.norms import frobenius_upper, norm_upper
from lplr_cli.certificate.proved import TRIED, Proved, check_method, check_radius, finite, pays
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS

# ``auto`` is tight while its matrix products stay below this many floating-point operations.
TIGHT_FLOPS = 2e10
# Above that, and up to this many, it is tight where a few samples show that this pays.
TIGHT_MOST = 4e12
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Over(Proved):
    """What is proved on one ball of an MLP, of its layers too.

    Attributes:
        reach: ≥ sup |z_l - ẑ_l| of each hidden layer, (n, m).
        forward: ≥ sup ||Dz_l||_op of each hidden layer, (n,).
        backward: ≥ sup ||∂f_c/∂z_l|| of each layer l = 1 … L, z_L = f being the last, (n, C).
        activations: ≥ sup ||a_{l-1}||, what layer l = 1 … L meets, each (n,).
    """

    reach: list[Tensor]
    forward: list[Tensor]
    backward: list[Tensor]
    activations: list[Tensor]


@dataclass(frozen=True)
class Ahead:
    """Forward over a ball, for one hidden layer.

    Attributes:
        own: sup of the squared norm of the block of Dz_l that belongs to the layer itself, (n,).
        rows: sup ||Dz_lj||, (n, m).
        reach: sup |z - ẑ|, (n, m).
        swing: sup |φ'(z) - φ'(ẑ)|, (n, m).
        slope: sup |φ'|, (n, m).
        bend: sup |φ''|, (n, m).
        dz: sup ||Dz_l||, (n,).
        dz_change: sup ||Dz_l - D̂z_l||, (n,).
        da: sup ||Da_l||, (n,).
        da_change: sup ||Da_l - D̂a_l||, (n,).
        a_change: sup ||a_l - â_l||, (n,).
    """

    own: Tensor
    rows: Tensor
    reach: Tensor
    swing: Tensor
    slope: Tensor
    bend: Tensor
    dz: Tensor
    dz_change: Tensor
    da: Tensor
    da_change: Tensor
    a_change: Tensor


@dataclass(frozen=True)
class Behind:
    """Backward over a ball, for one hidden layer, each (n, C).

    Attributes:
        sensitivity: sup ||∂f/∂z_l||.
        top: sup over the units of the weight |e φ''|.
        more: sup over the units of what that weight exceeds ŵ by.
        crowd: sup over the units of |e_j| ||Dz_j||.
    """

    sensitivity: Tensor
    top: Tensor
    more: Tensor
    crowd: Tensor


class BallBounds:
    """Bounds over closed balls around θ_0, and the rounding of what was computed at θ_0.

    Args:
        network: the MLP at θ_0.
        inputs: (n, …), all training samples; the bound is for J̃ = J/√n over them.
        method: ``tight`` takes ||Dz_l|| of each sample from its Gram matrix (about 4 n m³ operations a layer),
            ``fast`` from products that similar samples share. ``auto`` is tight where that takes seconds; beyond, it
            is fast unless a few samples show that this loses more than a factor of four.

    Attributes:
        f: f̂(θ_0), (n, C).
        f_error: ≥ |f̂ - f|, (n, C).
        jacobian_error_rows: ≥ ||Ĵ_i - J_i||_F plus ||J'_i - J_i||_F, (n,), Ĵ being the Jacobian as computed here and
            J' that of an engine which sums in another order: either, or their distance, is within it.
        weight_norms: ≥ ||W_l||_op at θ_0, of each layer.
        jacobian_error: the same for ||·||_F of the whole J̃ = J/√n.

    Raises:
        InputError: an unknown method.
    """

    def __init__(self, network: SmoothMLP, inputs: Tensor, *, method: str = "auto") -> None:
        check_method(method)
        x = inputs.flatten(1).cpu().double()
        self.network, self.centre = network, Centre(network, x)
        centre = self.centre
        self.n, self.outputs = centre.n, centre.outputs
        self.f, self.f_error = centre.passes[-1].z, centre.passes[-1].z_error
        # Twice: once for these numbers, once for those of the engine that formed K, in another order.
        self.jacobian_error_rows = 2 * centre.jacobian_error
        self.jacobian_error = frobenius_upper(self.jacobian_error_rows) / math.sqrt(self.n)
        self.weight_norms = centre.weight_norms
        self.joint = self._joint_moment(x)
        flops = sum(5 * self.n * float(len(layer.weight)) ** 3 for layer in network.layers[1:-1])
        self.method = ("tight" if flops <= TIGHT_FLOPS else "fast") if method == "auto" else method
        self.norms = centre.norms(self.method)
        if method == "auto" and self.method == "fast" and flops <= TIGHT_MOST:
            few = BallBounds(network, inputs[:TRIED], method="tight")
            if pays(self.over(0.0).hessians[:TRIED], few.over(0.0).hessians):
                self.method, self.norms = "tight", centre.norms("tight")

    def over(self, radius: float) -> Over:
        """All bounds on the closed ball of this radius.

        Raises:
            InputError: a radius that is negative or not finite.
        """
        check_radius(radius)
        ahead = self.forward_over(radius)
        behind = self.backward_over(radius, ahead)
        hessians = finite(self._assemble(ahead, behind))
        gradients, jacobians = self._jacobian_over(radius, ahead, behind, hessians)
        ones = torch.ones((self.n, self.outputs), dtype=torch.float64)
        return Over(
            radius=radius,
            hessians=hessians,
            thirds=finite(self._thirds(radius, ahead, behind)),
            gradients=gradients,
            f_reach=(gradients * radius + self.f_error) * (1 + MARGIN),
            jacobians=jacobians,
            reach=[finite(a.reach) for a in ahead],
            forward=[finite(a.dz) for a in ahead],
            backward=[*(finite(b.sensitivity) for b in behind), ones],
            activations=[finite(self.centre.passes[0].a_norm), *(finite(a) for a in self._activations(ahead))],
            l_j=self._joined(hessians, behind),
        )

    def l_j(self, radius: float) -> float:
        """L_J alone, see :meth:`over`."""
        return self.over(radius).l_j

    def _activations(self, ahead: list[Ahead]) -> list[Tensor]:
        """sup ||a_l|| of each hidden layer, (n,)."""
        return [at.a_norm + a.a_change for at, a in zip(self.centre.passes[1:], ahead, strict=True)]

    def forward_over(self, radius: float) -> list[Ahead]:
        found: list[Ahead] = []
        for level in range(self.centre.hidden):
            found.append(self._layer_over(level, radius, found[-1] if found else None))
        return found

    def _layer_over(self, level: int, radius: float, below: Ahead | None) -> Ahead:
        """One layer forward, from the layer below."""
        centre, norms = self.centre, self.norms[level]
        layer, at, phi = centre.network.layers[level], centre.passes[level], centre.network.activation
        c, weight_norm = layer.scale, centre.weight_norms[level]
        none = torch.zeros(self.n, dtype=torch.float64)
        a_change, da, da_change = (below.a_change, below.da, below.da_change) if below else (none, none, none)
        moved = radius if layer.weight_trained else 0.0
        own = centre.own(level, at.a_norm + a_change)
        own_change = c * a_change if layer.weight_trained else none
        change = torch.hypot(own_change, c * (moved * da + weight_norm * da_change))
        bound = torch.minimum(norms.dz + change, torch.sqrt(own + (c * (weight_norm + moved) * da).square()))
        lines = (c * (centre.row_norms[level] + moved)[None] * da[:, None]).square()
        rows = torch.minimum(norms.dz_rows + change[:, None], torch.sqrt(own[:, None] + lines))
        reach = (rows * radius + at.z_error) * (1 + MARGIN)
        low, high = at.z - reach, at.z + reach
        bend, slope = phi.sup_second(low, high), phi.sup_first(low, high)
        swing = bend * reach + ELEMENTARY_ULPS * _EPS * (1 + at.z.abs())
        steep = slope.amax(dim=1)
        da_change = swing.amax(dim=1) * norms.dz + steep * change
        da = torch.minimum(norms.da + da_change, steep * bound)
        a_change = da * radius + centre.passes[level + 1].a_error
        return Ahead(own, rows, reach, swing, slope, bend, bound, change, da, da_change, a_change)

    def backward_over(self, radius: float, ahead: list[Ahead]) -> list[Behind]:
        """The gradients s_l = ∂f/∂z_l, and the weights of the second derivatives, from above."""
        centre = self.centre
        layers, phi = centre.network.layers, centre.network.activation
        found: list[Behind] = []
        # sup ||e_l - ê_l|| without the rounding of ê_l, as layer l + 1 hands it down.
        moved = radius if layers[-1].weight_trained else 0.0
        e_change = torch.full((self.n, self.outputs), layers[-1].scale * moved, dtype=torch.float64)
        for level in range(centre.hidden - 1, -1, -1):
            layer, at, back, here = layers[level], centre.passes[level], centre.backs[level], ahead[level]
            e_change = e_change + euclidean(back.e_error)
            size = back.e.abs()
            # Weights over the ball against those at θ_0: a bound of Σ w (Dz_j u)² by each way.
            hat = size * phi.second(at.z).abs()[:, None]
            most = size + e_change[:, :, None]
            top = most * here.bend[:, None]
            s_change = euclidean(here.swing[:, None] * size) + here.slope.amax(dim=1)[:, None] * e_change
            sensitivity = euclidean(centre.slopes[level][:, None] * back.e) + s_change
            # A difference needs the rounding of its terms added: no relative margin would cover it.
            more = (top * (1 + 8 * _EPS) - hat).clamp_min(0)
            crowd = (most * here.rows[:, None]).amax(dim=2)
            found.insert(0, Behind(sensitivity, top.amax(dim=2), more.amax(dim=2), crowd))
            moved = radius if layer.weight_trained else 0.0
            e_change = layer.scale * (moved * sensitivity + centre.weight_norms[level] * s_change)
        return found

    def _assemble(self, ahead: list[Ahead], behind: list[Behind]) -> Tensor:
        """h_ic by the block recursion over the layers, (n, C)."""
        total = torch.zeros((self.n, self.outputs), dtype=torch.float64)
        for level, layer in enumerate(self.network.layers):
            if level and layer.weight_trained:
                # λ_max of [[H, k], [k, 0]]: the blocks below, and the own block that meets them.
                sensitivity = behind[level].sensitivity if level < self.centre.hidden else torch.ones_like(total)
                cross = layer.scale * sensitivity * ahead[level - 1].da[:, None]
                total = total / 2 + torch.hypot(total / 2, cross)
            if level < self.centre.hidden:
                total = total + self.curvature_over(self.norms[level], ahead[level], behind[level])
        return total * (1 + MARGIN)

    @staticmethod
    def curvature_over(norms: Norms, ahead: Ahead, behind: Behind) -> Tensor:
        """q_l: the form Σ w_j (Dz_j u)² over the ball, the smaller of two bounds, (n, C)."""
        near = torch.sqrt(norms.weighted + behind.more * norms.dz.square()[:, None])
        drifted = (near + behind.top.sqrt() * ahead.dz_change[:, None]).square()
        return torch.minimum(behind.top * ahead.dz.square()[:, None], drifted)

    def _thirds(self, radius: float, ahead: list[Ahead], behind: list[Behind]) -> Tensor:
        """sup ||D³f_ic||, (n, C): every term of the derivative of the adjoint form (docs/theory.md, section 9)."""
        phi, layers = self.network.activation, self.network.layers
        seconds = self._seconds(radius, ahead)
        ones = torch.ones((self.n, self.outputs), dtype=torch.float64)
        total = torch.zeros_like(ones)
        # sup ||D e_l||, as layer l + 1 hands it down.
        e_turn = layers[-1].scale * ones if layers[-1].weight_trained else total
        if self.centre.hidden and layers[-1].weight_trained:
            total = layers[-1].scale * seconds[-1][1][:, None] * ones
        for level in range(self.centre.hidden - 1, -1, -1):
            layer, a, b = layers[level], ahead[level], behind[level]
            moved = radius if layer.weight_trained else 0.0
            dz, squeezed = a.dz[:, None], (a.bend * a.rows).amax(dim=1)[:, None]
            s_turn = b.top * dz + a.slope.amax(dim=1)[:, None] * e_turn
            total = total + e_turn * squeezed * dz + phi.third * b.crowd * dz.square()
            total = total + 2 * b.top * dz * seconds[level][0][:, None]
            if level and layer.weight_trained:
                below = s_turn * ahead[level - 1].da[:, None] + b.sensitivity * seconds[level - 1][1][:, None]
                total = total + layer.scale * below
            e_turn = layer.scale * (self.centre.weight_norms[level] + moved) * s_turn
            if layer.weight_trained:
                e_turn = e_turn + layer.scale * b.sensitivity
        return total * (1 + MARGIN)

    def _seconds(self, radius: float, ahead: list[Ahead]) -> list[tuple[Tensor, Tensor]]:
        """sup ||D²z_l|| and sup ||D²a_l|| of each hidden layer, (n,)."""
        found: list[tuple[Tensor, Tensor]] = []
        for level, a in enumerate(ahead):
            layer = self.network.layers[level]
            z = torch.zeros(self.n, dtype=torch.float64)
            if level:
                moved = radius if layer.weight_trained else 0.0
                z = layer.scale * (self.centre.weight_norms[level] + moved) * found[-1][1]
                if layer.weight_trained:
                    z = z + layer.scale * ahead[level - 1].da
            found.append((z, (a.bend * a.rows).amax(dim=1) * a.dz + a.slope.amax(dim=1) * z))
        return found

    def _jacobian_over(
        self, radius: float, ahead: list[Ahead], behind: list[Behind], hessians: Tensor
    ) -> tuple[Tensor, Tensor]:
        """sup ||∇f_ic|| (n, C) and sup ||J_i||_op (n,): from the norms over the ball, or from θ_0 and the Hessians."""
        centre, last = self.centre, self.centre.network.layers[-1]
        none = torch.zeros(self.n, dtype=torch.float64)
        a_change, da = (ahead[-1].a_change, ahead[-1].da) if ahead else (none, none)
        own = centre.own(centre.hidden, centre.passes[-1].a_norm + a_change)
        blocks = [a.own[:, None] * b.sensitivity.square() for a, b in zip(ahead, behind, strict=True)]
        squares = own[:, None] + sum(blocks, torch.zeros_like(hessians))
        near = centre.gradients + radius * hessians
        gradients = torch.minimum(finite(squares.sqrt()), finite(near)) * (1 + MARGIN)
        moved = radius if last.weight_trained else 0.0
        through = torch.sqrt(own + (last.scale * (centre.weight_norms[-1] + moved) * da).square())
        return gradients, torch.minimum(finite(through), euclidean(gradients)) * (1 + MARGIN)

    def _joined(self, hessians: Tensor, behind: list[Behind]) -> float:
        """L_J from the Hessians of all samples and outputs."""
        found = frobenius_upper(hessians) / math.sqrt(self.n)
        if self.joint is not None:
            # One hidden layer, trained alone: the samples share the direction that each neuron moves in.
            found = min(found, frobenius_upper(finite(behind[0].top).amax(dim=0)) * self.joint)
        return found * (1 + MARGIN)

    def _joint_moment(self, x: Tensor) -> float | None:
        """The square root of λ_max((1/n) Σ_i ||x̃_i||² x̃_i x̃_iᵀ), x̃ = (c x, 1) as far as trained.

        None unless the first of two layers is trained alone.
        """
        layers = self.network.layers
        first, last = layers[0], layers[-1]
        if len(layers) != 2 or last.weight_trained or last.bias_trained:
            return None
        parts = [first.scale * x] if first.weight_trained else []
        parts += [torch.ones((self.n, 1), dtype=torch.float64)] if first.bias_trained else []
        if not parts:
            return None
        moved = torch.cat(parts, dim=1)
        return norm_upper(moved * euclidean(moved)[:, None]) / math.sqrt(self.n) * (1 + MARGIN)
