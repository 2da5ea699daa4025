"""A module read into a graph: its forward pass is traced, and each operation must be one with proved bounds.

Parts are known by their exact type, and nothing may be hooked, patched, parametrised or shared (see
:mod:`lplr_cli.certificate.network`). What a traced forward pass does beyond its operations, the comparison of outputs
would show.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from lplr_cli.certificate.graph.builder import Builder, Learnt, Place, refuse
from lplr_cli.certificate.graph.operations import CALLS, NUMBERS, PARTS, multihead
from lplr_cli.certificate.network import activation_name, inspect_module
from lplr_cli.models import activation_of

_SILENT = (nn.Dropout, nn.Dropout2d, nn.Identity)


class _Tracer(fx.Tracer):
    """Goes into modules of others, and stops at those of torch and at activations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith("torch.nn") and type(m) not in (nn.Sequential, nn.ModuleList)
        return own or activation_of(m) is not None


class Reader(Builder):
    """The graph of a module.

    Args:
        module: in any mode.
        trained: names of the parameters that θ is made of.
        probe: inputs (n, …), whose shapes decide.

    Raises:
        NoCertificateError: an operation without a bound.
    """

    def __init__(self, module: nn.Module, trained: set[str], probe: Tensor) -> None:
        inspect_module(module)
        if type(module).__module__.startswith("torch.nn") and type(module) is not nn.Sequential:
            raise refuse(f"{type(module).__name__} alone", "put it into a torch.nn.Sequential")
        super().__init__(module, trained, probe)
        self._module = module
        self._known: dict[fx.Node, Any] = {}
        for node in self._trace().nodes:
            self._read(node)

    def _trace(self) -> fx.Graph:
        modes = [(m, m.training) for m in self._module.modules()]
        self._module.eval()
        try:
            graph = _Tracer().trace(self._module)
        except Exception as error:  # the forward pass is code of the user's
            name = type(self._module).__name__
            raise refuse(
                f"this {name}, whose forward pass cannot be traced", "it must not branch on its input"
            ) from error
        finally:
            for m, mode in modes:
                m.training = mode
        return graph

    def _read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if Place.of(self._known.values()):
                raise refuse("a forward pass with several inputs", "give a module of one input")
            self._known[node] = Place(0, self._places[0].shape)
        elif node.op == "output":
            out = self._argument(node.args[0])
            if not isinstance(out, Place) or out.index != len(self.nodes) or len(out.shape) != 2:
                raise refuse("what this module returns", "return one tensor of shape (n, C), the last one computed")
        elif node.op == "call_module":
            self._known[node] = self._part(node)
        elif node.op in ("call_function", "call_method"):
            self._known[node] = self._call(node)
        else:
            self._known[node] = self._attribute(str(node.target))

    def _attribute(self, target: str) -> Any:
        """A parameter outside of a layer, or a tensor that is kept."""
        parameters, buffers = dict(self._module.named_parameters()), dict(self._module.named_buffers())
        if target in parameters:
            return Learnt(target, parameters[target].shape)
        if target not in buffers:
            raise refuse(f"a forward pass that uses {target} outside of a layer")
        return buffers[target].detach().cpu()

    def _argument(self, value: Any) -> Any:
        """What a node was given, places and sizes in the place of nodes."""
        return fx.node.map_arg(value, lambda n: self._known[n])

    def _part(self, node: fx.Node) -> Any:
        target = str(node.target)
        part = self._module.get_submodule(target)
        args, kwargs = self._argument(node.args), self._argument(node.kwargs)
        if type(part) is nn.MultiheadAttention:
            return multihead(self, target, part, *args, **dict(kwargs))
        if type(part) is nn.Embedding and len(args) == 1 and isinstance(args[0], Tensor):
            args = (self.constant(args[0].reshape(args[0].shape[-1]).double(), "indices"),)
        if len(args) != 1 or kwargs or not isinstance(args[0], Place):
            raise refuse(f"{type(part).__name__} with several arguments")
        if type(part) in _SILENT:
            return args[0]
        handler = PARTS.get(type(part))
        if handler is not None:
            return handler(self, args[0], target, part)
        if getattr(part, "inplace", False):
            raise refuse(f"{type(part).__name__} in place", "pass inplace=False")
        return self.activation(args[0], *activation_name(part))

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._argument(node.args), dict(self._argument(node.kwargs))
        numbers = not kwargs and all(type(a) in (int, float) for a in args)
        handler = NUMBERS.get(node.target) if numbers else None
        handler = handler or CALLS.get(node.target)
        if handler is None:
            name = getattr(node.target, "__name__", node.target)
            raise refuse(f"the operation {name}")
        try:
            return handler(self, *args, **kwargs)
        except (TypeError, ArithmeticError) as error:
            name = getattr(node.target, "__name__", node.target)
            raise refuse(f"the operation {name} with these arguments") from error
