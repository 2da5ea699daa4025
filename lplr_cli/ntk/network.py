"""A network as the engines see it: a module, the parameters that are differentiated, everything else fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lplr_cli.errors import InputError


@dataclass(frozen=True)
class Network:
    """f(θ, x) with θ apart from the module, so that one module serves several θ and dtypes.

    Attributes:
        module: gives the code of the forward pass; its own parameters are not used and not changed.
        params: θ by name, leaves that require grad; the order is that of the module.
        fixed: frozen parameters and buffers, by name.
    """

    module: nn.Module
    params: dict[str, Tensor]
    fixed: dict[str, Tensor]

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        values: Mapping[str, Tensor] | None = None,
        names: Iterable[str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Network:
        """Take θ from ``module``, or from ``values`` for the same module at another point.

        Args:
            module: any module whose samples do not interact in evaluation mode.
            values: parameters by name; those left out come from the module.
            names: the parameters that count as trained; all that require grad by default.
            dtype: to which parameters and floating-point buffers are converted.
            device: where the computation runs.

        Raises:
            InputError: a name that the module does not have, or no parameter at all.
        """
        own = dict(module.named_parameters())
        chosen = set(names) if names is not None else {k for k, p in own.items() if p.requires_grad}
        unknown = chosen - set(own)
        if unknown or not chosen:
            raise InputError(
                f"the model has no parameter {', '.join(sorted(unknown))}" if unknown else "no trainable parameter",
                f"its parameters are {', '.join(own) or 'none'}",
            )
        params: dict[str, Tensor] = {}
        fixed: dict[str, Tensor] = {}
        for name, parameter in own.items():
            value = (values or {}).get(name, parameter)
            # A fresh alias where nothing is converted: the module's own tensors are never made to require grad.
            tensor = value.detach().to(device=device, dtype=dtype).view_as(parameter)
            if name in chosen:
                params[name] = tensor.requires_grad_()
            else:
                fixed[name] = tensor
        for name, buffer in module.named_buffers():
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            fixed[name] = buffer.detach().to(device=device, dtype=kind)
        return cls(module, params, fixed)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of θ."""
        return next(iter(self.params.values())).dtype

    @property
    def device(self) -> torch.device:
        """The device of θ."""
        return next(iter(self.params.values())).device

    @property
    def parameter_count(self) -> int:
        """P, the number of differentiated parameters."""
        return sum(p.numel() for p in self.params.values())

    def forward(self, x: Tensor, replace: Mapping[str, Tensor] | None = None) -> Tensor:
        """f(θ, x), shape (n, C), for a batch x of shape (n, …); ``replace`` overrides parameters by name."""
        state = {**self.fixed, **self.params, **(replace or {})}
        out: Tensor = functional_call(self.module, state, (x,))
        if not isinstance(out, Tensor):
            raise InputError(f"the model returns {type(out).__name__}", "return one tensor of shape (n, C)")
        return out.reshape(x.shape[0], -1)

    def saved_bytes(self, build: Callable[[], object], *data: Tensor) -> int:
        """Bytes that autograd keeps for derivatives while ``build()`` runs, beside parameters, buffers and ``data``."""
        own = {t.untyped_storage().data_ptr() for t in (*self.params.values(), *self.fixed.values(), *data)}
        # The storages are held: one that is freed on the way would lend its address to another.
        seen: dict[int, torch.UntypedStorage] = {}

        def note(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage
            return t

        with saved_tensors_hooks(note, lambda t: t):
            build()
        return sum(storage.nbytes() for storage in seen.values())

    def cast(self, inputs: Tensor) -> Tensor:
        """``inputs`` on the device of θ, floating-point inputs in its dtype (token indices stay integers)."""
        return inputs.to(self.device, self.dtype if inputs.is_floating_point() else inputs.dtype)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode of every submodule afterwards.

    The kernel is that of a deterministic function of one sample: batch normalisation with its running statistics,
    dropout off. Attention takes its plain form, the one that has derivatives of every kind and order.
    """
    modes = [(m, m.training) for m in module.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for m, mode in modes:
            m.training = mode


def check_finite(outputs: Tensor) -> None:
    """Refuse outputs that are not finite.

    Raises:
        InputError: one of them is not.
    """
    if not torch.isfinite(outputs).all():
        raise InputError("the model's outputs are not finite", "check the checkpoint and the data")


def check_samples_independent(network: Network, x: Tensor) -> int:
    """Refuse a model whose output for a sample depends on the other samples of the batch.

    Returns:
        C, the outputs of a sample.

    Raises:
        InputError: outputs differ between a batch of two and of one, or are not finite.
    """
    with torch.no_grad(), evaluation_mode(network.module):
        alone = network.forward(x[:1])
        together = network.forward(x[: min(2, len(x))])[:1]
    check_finite(alone)
    tolerance = 100 * torch.finfo(network.dtype).eps ** 0.75
    if not torch.allclose(alone, together, rtol=tolerance, atol=tolerance):
        raise InputError(
            "the model mixes the samples of a batch in evaluation mode",
            "the empirical NTK needs f(x) to depend on x alone",
        )
    return alone.shape[1]
