"""Upper bounds of the Lipschitz constant L_J of the Jacobian over a ball, for smooth MLPs (docs/theory.md, section 5).

All that depends on θ_0 alone is computed once; :meth:`BallBounds.l_j` then costs a few passes over the activations
for each radius. Quantities with a hat are those of floating-point numbers at θ_0. Everything else, true values at θ_0
included, is bounded by its distance from them: the distance grows with the drift inside the ball and starts from the
rounding of the forward and backward pass, so that the result bounds the exact constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lplr_cli.certificate.norms import largest_eigenvalue_upper, norm_upper
from lplr_cli.certificate.shared import LayerAt, group_count, shared_curvature, similar
from lplr_cli.certificate.smooth import ELEMENTARY_ULPS, Smooth, smooth_activation
from lplr_cli.errors import InputError
from lplr_cli.linalg import gamma
from lplr_cli.models import MLP, SOFTPLUS_THRESHOLD

METHODS = ("auto", "tight", "fast")
# Non-negative sums and products of the recursions: at most 2^26 roundings one after another, each of relative size u.
_MARGIN = 1e-8
# ``auto`` is tight while its matrix products stay below this many floating-point operations.
_TIGHT_FLOPS = 2e10
# Above that, and up to this many, it is tight where a few samples show that the fast bounds lose more than a factor.
_TIGHT_MOST = 4e12
_TRIED = 4
_WORTH = 4.0
# Forward and backward passes that the products of ``fast`` may cost.
_SHARED_PASSES = 5


class NoCertificateError(InputError):
    """The theory has no bound for this network; the message says why."""


@dataclass(frozen=True)
class Layer:
    """z = c W a + b with W (m, k), b (m,), and which of the two are trained."""

    weight: Tensor
    bias: Tensor
    scale: float
    weight_trained: bool
    bias_trained: bool


@dataclass(frozen=True)
class SmoothMLP:
    """An MLP with a smooth activation at one θ, in float64."""

    layers: tuple[Layer, ...]
    activation: Smooth

    @classmethod
    def from_module(cls, module: nn.Module, names: Iterable[str] | None = None) -> SmoothMLP:
        """Take the layers of a :class:`lplr_cli.models.MLP`, or of a ``Sequential`` of linear layers and activations.

        Args:
            module: the network at θ_0. A ``Sequential`` may begin with ``Flatten`` and hold ``Dropout`` and
                ``Identity``, which do nothing in evaluation mode.
            names: trained parameters, as in ``module.named_parameters()``; all that require grad by default.

        Raises:
            NoCertificateError: another architecture, or an activation that is not smooth.
        """
        # Exact types and no hooks: a subclass or a hook may compute anything.
        if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
            raise NoCertificateError("no certificate for modules with forward hooks", "remove the hooks")
        if type(module) is MLP:
            linears = {f"layers.{i}": layer for i, layer in enumerate(module.layers)}
            scales, (name, beta) = module.scales, (module.activation_name, module.beta)
        else:
            linears, name, beta = _sequential(module)
            scales = [1.0] * len(linears)
        activation = smooth_activation(name, beta)
        if activation is None and len(linears) > 1:
            raise NoCertificateError(
                f"no certificate for {name}", "its derivative jumps: use softplus, tanh, gelu or silu"
            )
        chosen = {k for k, p in module.named_parameters() if p.requires_grad} if names is None else set(names)
        layers = []
        for (stem, linear), scale in zip(linears.items(), scales, strict=True):
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.detach().double()
            given: Tensor | None = linear.bias
            bias = weight.new_zeros(len(weight)) if given is None else given.detach().double()
            layers.append(Layer(weight, bias, scale, f"{stem}.weight" in chosen, f"{stem}.bias" in chosen))
        return cls(tuple(layers), activation or _linear())


def _sequential(module: nn.Module) -> tuple[dict[str, nn.Module], str, float]:
    """The linear layers of a ``Sequential`` by name, the activation between them and its β.

    Raises:
        NoCertificateError: anything else in it, or activations that differ.
    """
    if type(module) is not nn.Sequential:
        raise NoCertificateError(
            f"no certificate for {type(module).__name__}", "bounds are proved for smooth MLPs alone"
        )
    names = {id(child): name for name, child in module.named_children()}
    linears: dict[str, nn.Module] = {}
    between: list[tuple[str, float]] = []
    weights: set[int] = set()
    for child in module:  # a module that is used twice comes twice
        if type(child) in (nn.Dropout, nn.Identity) or (type(child) is nn.Flatten and not linears):
            continue
        if type(child) is nn.Linear and len(between) == len(linears):
            own = {id(p) for p in child.parameters()}
            if own & weights:
                raise NoCertificateError(
                    "no certificate for shared weights", "bounds are proved for layers of their own"
                )
            weights |= own
            linears[names[id(child)]] = child
        elif len(between) + 1 == len(linears):
            between.append(_activation(child))
        else:
            raise NoCertificateError(
                f"no certificate for {type(child).__name__} at this place of a Sequential",
                "bounds are proved for linear layers with one activation between each two",
            )
    if not linears or len(between) != len(linears) - 1 or len(set(between)) > 1:
        raise NoCertificateError(
            "no certificate for this Sequential", "bounds are proved for linear layers with the same activation between"
        )
    return linears, *(between[0] if between else ("identity", 1.0))


def _activation(child: nn.Module) -> tuple[str, float]:
    """Name and β of an activation of torch or of this package; the class name where it is another module."""
    if type(child) is nn.Softplus:
        if child.threshold < SOFTPLUS_THRESHOLD:
            raise NoCertificateError(
                f"no certificate for Softplus that is linear from {child.threshold:g} on, where it jumps",
                f"pass threshold={SOFTPLUS_THRESHOLD:g}, which lies below the rounding",
            )
        return "softplus", float(child.beta)
    if type(child) is nn.GELU and child.approximate != "none":
        return f"GELU with approximate={child.approximate}", 1.0
    known = {nn.Tanh: "tanh", nn.GELU: "gelu", nn.SiLU: "silu", nn.ReLU: "relu"}
    return known.get(type(child), type(child).__name__), 1.0


def _linear() -> Smooth:
    return Smooth("identity", lambda z: z, torch.ones_like, torch.zeros_like, (), ())


def _norm(t: Tensor) -> Tensor:
    """Euclidean norm along the last axis."""
    result: Tensor = torch.linalg.vector_norm(t, dim=-1)
    return result


@dataclass
class _Forward:
    """One hidden layer at θ_0 for n samples; hatted quantities and their errors."""

    z: Tensor  # (n, m)
    z_error: Tensor  # (n, m): |ẑ - z|
    d1: Tensor  # (n, m): φ'(ẑ)
    a_norm: Tensor  # (n,): ||â_{l-1}||, what W meets
    a_error: Tensor  # (n,): ||â_{l-1} - a_{l-1}||
    weight_norm: float  # ≥ ||W||_op
    row_norms: Tensor  # (m,)
    dz: Tensor  # (n,): ≥ ||D̂z_l||
    da: Tensor  # (n,): ≥ ||D̂a_l||
    dz_rows: Tensor  # (n, m): ≥ ||D̂z_lj||
    weighted: Tensor | None = None  # (n, C): ≥ λ_max(√ŵ Ĝ √ŵ), ŵ = |ê φ''(ẑ)|
    e: Tensor | None = None  # (n, C, m): ∂f/∂a_l
    e_error: Tensor | None = None  # (n, C, m)


class BallBounds:
    """L_J over closed balls around θ_0, and the rounding of what was computed at θ_0.

    Args:
        network: the MLP at θ_0.
        inputs: (n, …), all training samples; the bound is for J̃ = J/√n over them.
        method: ``tight`` takes ||Dz_l|| of each sample from its Gram matrix (about 4 n m³ operations a layer),
            ``fast`` from products that similar samples share. ``auto`` is tight where that takes seconds; beyond, it
            is fast unless a few samples show that this loses more than a factor of four.

    Raises:
        InputError: an unknown method.
    """

    def __init__(self, network: SmoothMLP, inputs: Tensor, *, method: str = "auto") -> None:
        if method not in METHODS:
            raise InputError(f"method {method!r} is unknown", f"choose from {', '.join(METHODS)}")
        self.network = network
        x = inputs.flatten(1).double()
        self.n, self.outputs = len(x), network.layers[-1].weight.shape[0]
        hidden = network.layers[:-1]
        flops = sum(5 * self.n * float(layer.weight.shape[0]) ** 3 for layer in hidden[1:])
        self.method = ("tight" if flops <= _TIGHT_FLOPS else "fast") if method == "auto" else method
        self._forward: list[_Forward] = []
        self._pass_forward(x)
        self._pass_backward()
        self._curvature()
        if method == "auto" and self.method == "fast" and flops <= _TIGHT_MOST:
            few = BallBounds(network, inputs[:_TRIED], method="tight")
            if bool((self.hessian_bounds(0.0)[:_TRIED] > _WORTH * few.hessian_bounds(0.0)).any()):
                self.method = "tight"
                self._curvature()
        self._joint = self._joint_moment(x)

    # -- at θ_0 ------------------------------------------------------------------------------------------------------

    def _pass_forward(self, x: Tensor) -> None:
        phi = self.network.activation
        a, error = x, torch.zeros_like(x)
        u = torch.finfo(torch.float64).eps
        for index, layer in enumerate(self.network.layers):
            w, c = layer.weight, layer.scale
            size = w.abs()
            z = (a @ w.T) * c
            # Any order of summation: |ẑ - z| ≤ c|W| E_a + γ_{k+4} (c|W|(|â| + E_a) + |b|).
            grown = gamma(w.shape[1] + 4, torch.float64)
            spread = c * (a.abs() + error) @ size.T
            z = z + layer.bias
            spread = spread + layer.bias.abs()
            z_error = (c * error @ size.T + grown * spread) * (1 + _MARGIN)
            if index == len(self.network.layers) - 1:
                self.f, self.f_error = z, z_error
                self.last_a_norm, self.last_a_error = _norm(a), _norm(error)
                self.last_weight_norm = norm_upper(w)
                self.last_row_norms = _norm(w)
                return
            d1 = phi.first(z)
            self._forward.append(
                _Forward(z, z_error, d1, _norm(a), _norm(error), norm_upper(w), _norm(w), *([torch.empty(0)] * 3))
            )
            value = phi.value(z)
            slope = phi.sup_first(z - z_error, z + z_error)
            error = (slope * z_error + ELEMENTARY_ULPS * u * (1 + z.abs() + value.abs())) * (1 + _MARGIN)
            a = value

    def _pass_backward(self) -> None:
        """ê_l = ∂f/∂a_l for every output, with its error, and the rounding of J."""
        phi = self.network.activation
        u = torch.finfo(torch.float64).eps
        layers = self.network.layers
        last = layers[-1]
        # Squared ||Ĵ - J||_F, over samples and outputs.
        wrong = torch.zeros(self.n, dtype=torch.float64)
        if last.weight_trained:
            wrong += self.outputs * (last.scale * self.last_a_error).square()
        e = (last.scale * last.weight).expand(self.n, *last.weight.shape)
        e_error = (u * e).abs()
        for level in range(len(layers) - 2, -1, -1):
            layer, at = layers[level], self._forward[level]
            at.e, at.e_error = e, e_error
            d1 = at.d1[:, None]
            bend = phi.sup_second(at.z - at.z_error, at.z + at.z_error)
            d1_error = (bend * at.z_error + ELEMENTARY_ULPS * u * (1 + at.z.abs()))[:, None]
            s = d1 * e
            s_error = (d1_error * (e.abs() + e_error) + d1.abs() * e_error + 2 * u * s.abs()) * (1 + _MARGIN)
            size, size_error = _norm(s), _norm(s_error)
            if layer.weight_trained:
                product = size_error * (at.a_norm + at.a_error)[:, None] + size * at.a_error[:, None]
                wrong += (layer.scale * product).square().sum(dim=1)
            if layer.bias_trained:
                wrong += size_error.square().sum(dim=1)
            if level:
                w, c = layer.weight, layer.scale
                grown = gamma(w.shape[0] + 4, torch.float64)
                e = c * (s @ w)
                e_error = c * ((s_error + grown * (s.abs() + s_error)) @ w.abs()) * (1 + _MARGIN)
        # Twice: once for these numbers, once for those of the engine that formed K, in another order.
        self.jacobian_error = 2 * math.sqrt(float(wrong.sum()) / self.n) * (1 + _MARGIN)

    def _own(self, level: int, a_bound: Tensor) -> Tensor:
        """Squared norm of the block of Dz_l that belongs to W_l and b_l themselves."""
        layer = self.network.layers[level]
        own = torch.zeros_like(a_bound)
        if layer.weight_trained:
            own = own + (layer.scale * a_bound).square()
        return own + 1.0 if layer.bias_trained else own

    def _curvature(self) -> None:
        """||D̂z_l||, ||D̂a_l|| and λ_max(√ŵ Ĝ √ŵ) of each sample."""
        if self.method == "tight" and len(self._forward) > 1:
            width = max(layer.weight.shape[0] for layer in self.network.layers[:-1])
            chunk = max(1, min(self.n, int(3e8 / (8 * 6 * width * width))))
            pieces = [self._exact(slice(i, min(self.n, i + chunk))) for i in range(0, self.n, chunk)]
            for level, at in enumerate(self._forward):
                at.dz, at.da, at.dz_rows, weighted = (torch.cat([p[level][j] for p in pieces]) for j in range(4))
                at.weighted = weighted
            return
        if not self._forward:
            return
        hidden = []
        for level, at in enumerate(self._forward):
            layer, own = self.network.layers[level], self._own(level, at.a_norm)
            hidden.append(LayerAt(layer.scale * layer.weight, at.d1, own, self._bend(at, slice(None))))
        slopes = [h.slope for h in hidden[:-1]]
        count = group_count(self.n, [len(h.weight) for h in hidden], _SHARED_PASSES * self._pass_flops())
        groups = similar(slopes, count) if slopes else torch.zeros(self.n, dtype=torch.long)
        below: Tensor | None = None
        for at, h, found in zip(self._forward, hidden, shared_curvature(hidden, groups), strict=True):
            at.dz, at.da, at.weighted = (t * (1 + _MARGIN) for t in found)
            lines = h.own[:, None]
            if below is not None:
                lines = lines + (_norm(h.weight)[None] * below[:, None]).square()
            at.dz_rows = lines.sqrt().expand_as(at.z) * (1 + _MARGIN)
            below = at.da

    def _bend(self, at: _Forward, rows: slice) -> Tensor:
        """ŵ = |ê φ''(ẑ)| of some samples, (k, C, m)."""
        assert at.e is not None
        return (at.e[rows] * self.network.activation.second(at.z[rows])[:, None]).abs()

    def _pass_flops(self) -> float:
        """Floating-point operations of a forward and backward pass over the samples."""
        return 6.0 * self.n * sum(layer.weight.numel() for layer in self.network.layers)

    def _exact(self, rows: slice) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """G_l = Dz_l Dz_lᵀ by its recursion, and verified bounds of the norms that are made of it."""
        found = []
        g: Tensor | None = None
        scalar = torch.empty(0)
        frobenius = error = torch.zeros(0)
        for level, at in enumerate(self._forward):
            layer = self.network.layers[level]
            own = self._own(level, at.a_norm[rows])
            weights = self._bend(at, rows)
            d1 = at.d1[rows].abs()
            if level == 0:
                # G_1 is a multiple of the identity.
                scalar = own
                dz, da = own.sqrt(), own.sqrt() * d1.amax(dim=1)
                lines, weighted = own.sqrt()[:, None].expand_as(d1), own[:, None] * weights.amax(dim=2)
                found.append((dz, da, lines, weighted * (1 + _MARGIN)))
                continue
            m = layer.scale * layer.weight * self._forward[level - 1].d1[rows][:, None]
            width = m.shape[2]
            size = m.square().sum(dim=(1, 2))
            if g is None:
                below_f = scalar * math.sqrt(width)
                g, error = scalar[:, None, None] * (m @ m.mT), torch.zeros_like(scalar)
            else:
                below_f = frobenius
                g = m @ g @ m.mT
                g = (g + g.mT) / 2
            g.diagonal(dim1=1, dim2=2).add_(own[:, None])
            # Rounding of the products in Frobenius norm, and what came from below.
            error = (size * error + gamma(3 * width + 12, torch.float64) * (size * (below_f + error) + own)) * 1.01
            frobenius = torch.linalg.matrix_norm(g)
            dz = torch.sqrt(largest_eigenvalue_upper(g) + error)
            da = torch.sqrt(largest_eigenvalue_upper(g * d1[:, :, None] * d1[:, None, :]) + error * d1.amax(dim=1) ** 2)
            lines = torch.sqrt(g.diagonal(dim1=1, dim2=2) + error[:, None])
            weighted = torch.stack(
                [
                    largest_eigenvalue_upper(g * r[:, :, None] * r[:, None, :]) + error * r.amax(dim=1) ** 2
                    for r in (weights[:, c].sqrt() for c in range(self.outputs))
                ],
                dim=1,
            )
            found.append(tuple(t * (1 + _MARGIN) for t in (dz, da, lines, weighted)))  # type: ignore[arg-type]
        return found

    # -- over the ball -----------------------------------------------------------------------------------------------

    def hessian_bounds(self, radius: float) -> Tensor:
        """h_ic ≥ sup over the ball of ||∇²f_ic||_op, shape (n, C).

        Leaves behind the bounds it is made of, a tensor a hidden layer: ``reach`` (n, m) of |z - ẑ|, ``forward`` (n,)
        of ||Dz_l||, and, with the last layer too, ``backward`` (n, C) of ||∂f/∂z_l||.
        """
        layers, phi = self.network.layers, self.network.activation
        u = torch.finfo(torch.float64).eps
        swing: list[Tensor] = []  # sup |φ'(z) - φ'(ẑ)|, (n, m)
        slope: list[Tensor] = []  # sup |φ'|, (n, m)
        bend: list[Tensor] = []  # sup |φ''|, (n, m)
        dz: list[Tensor] = []  # sup ||Dz_l||, (n,)
        dz_change: list[Tensor] = []  # sup ||Dz_l - D̂z_l||, (n,)
        da: list[Tensor] = []  # sup ||Da_l||, (n,)
        a_change = torch.zeros(self.n, dtype=torch.float64)  # sup ||a_{level-1} - â_{level-1}||
        da_change = torch.zeros(self.n, dtype=torch.float64)
        self.reach: list[Tensor] = []
        for level, at in enumerate(self._forward):
            layer = layers[level]
            c = layer.scale
            moved = radius if layer.weight_trained else 0.0
            own = self._own(level, at.a_norm + a_change)
            own_change = c * a_change if layer.weight_trained else torch.zeros_like(a_change)
            below = da[-1] if da else torch.zeros_like(a_change)
            change = torch.hypot(own_change, c * (moved * below + at.weight_norm * da_change))
            bound = torch.minimum(at.dz + change, torch.sqrt(own + (c * (at.weight_norm + moved) * below).square()))
            rows = torch.minimum(
                at.dz_rows + change[:, None],
                torch.sqrt(own[:, None] + (c * (at.row_norms + moved)[None] * below[:, None]).square()),
            )
            reach = (rows * radius + at.z_error) * (1 + _MARGIN)
            self.reach.append(reach)
            low, high = at.z - reach, at.z + reach
            bend.append(phi.sup_second(low, high))
            slope.append(phi.sup_first(low, high))
            swing.append(bend[-1] * reach + ELEMENTARY_ULPS * u * (1 + at.z.abs()))
            dz.append(bound)
            dz_change.append(change)
            steep = slope[-1].amax(dim=1)
            da_change = swing[-1].amax(dim=1) * at.dz + steep * change
            da.append(torch.minimum(at.da + da_change, steep * bound))
            a_change = da[-1] * radius + (
                self._forward[level + 1].a_error if level + 1 < len(self._forward) else self.last_a_error
            )
        # Backwards: the gradients s_l = ∂f/∂z_l, and the weights of the second derivatives.
        hidden = len(self._forward)
        sensitivity: list[Tensor] = [torch.empty(0)] * (hidden + 1)
        sensitivity[hidden] = torch.ones((self.n, self.outputs), dtype=torch.float64)
        diagonal: list[tuple[Tensor, Tensor, Tensor]] = [(torch.empty(0),) * 3] * hidden
        last = layers[-1]
        moved = radius if last.weight_trained else 0.0
        e_change = torch.full((self.n, self.outputs), last.scale * moved, dtype=torch.float64)
        for level in range(hidden - 1, -1, -1):
            layer, at = layers[level], self._forward[level]
            assert at.e is not None
            assert at.e_error is not None
            e_change = e_change + _norm(at.e_error)
            size = at.e.abs()
            # Weights over the ball against those at θ_0: a bound of Σ w (Dz_j u)² by each way.
            here = (size * phi.second(at.z).abs()[:, None]).clamp_min(0)
            top = (size + e_change[:, :, None]) * bend[level][:, None]
            diagonal[level] = (top.amax(dim=2), (top - here).clamp_min(0).amax(dim=2), here)
            steep = slope[level].amax(dim=1)[:, None]
            s_change = _norm(swing[level][:, None] * size) + steep * e_change
            sensitivity[level] = _norm(at.d1[:, None] * at.e) + s_change
            moved = radius if layer.weight_trained else 0.0
            e_change = layer.scale * (moved * sensitivity[level] + at.weight_norm * s_change)
        self.forward, self.backward = dz, sensitivity
        self._steepest = [top.amax(dim=0) for top, _, _ in diagonal]
        total = torch.zeros((self.n, self.outputs), dtype=torch.float64)
        for level in range(hidden + 1):
            layer = layers[level]
            if level and layer.weight_trained:
                # λ_max of [[H, k], [k, 0]]: the blocks below, and the own block that meets them.
                cross = layer.scale * sensitivity[level] * da[level - 1][:, None]
                total = total / 2 + torch.hypot(total / 2, cross)
            if level < hidden:
                at = self._forward[level]
                top_w, more, _ = diagonal[level]
                bound = top_w * dz[level].square()[:, None]
                if at.weighted is not None:
                    near = torch.sqrt(at.weighted + more * at.dz.square()[:, None])
                    bound = torch.minimum(bound, (near + top_w.sqrt() * dz_change[level][:, None]).square())
                total = total + bound
        return total * (1 + _MARGIN)

    def l_j(self, radius: float) -> float:
        """L_J with ||J̃(θ) - J̃(θ')||_op ≤ L_J ||θ - θ'|| on the ball of this radius; infinite beyond float64."""
        if not 0 <= radius < math.inf:
            raise InputError(f"radius {radius} is not finite and non-negative", "give a radius of at least 0")
        square = float(self.hessian_bounds(radius).square().sum()) / self.n
        if self._joint is not None:
            # One hidden layer, trained alone: the samples share the direction that each neuron moves in.
            square = min(square, float(self._steepest[0].square().sum()) * self._joint)
        return math.sqrt(square) * (1 + _MARGIN) if math.isfinite(square) else math.inf

    def _joint_moment(self, x: Tensor) -> float | None:
        """λ_max((1/n) Σ_i ||x̃_i||² x̃_i x̃_iᵀ), x̃ = (c x, 1) as far as trained.

        None unless the first of two layers is trained alone.
        """
        layers = self.network.layers
        first, last = layers[0], layers[-1]
        if len(layers) != 2 or last.weight_trained or last.bias_trained:
            return None
        parts = [first.scale * x] if first.weight_trained else []
        parts += [torch.ones((self.n, 1), dtype=torch.float64)] if first.bias_trained else []
        moved = torch.cat(parts, dim=1)
        return norm_upper(moved * _norm(moved)[:, None]) ** 2 / self.n * (1 + _MARGIN)
