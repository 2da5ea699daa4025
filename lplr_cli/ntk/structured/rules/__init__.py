"""One module a kind of layer: its capture, its factors, its cost and its rounding length.

A module that is put here is taken in. It registers with :func:`lplr_cli.ntk.structured.capture.rule` the functions of
torch that it understands, and says with a :class:`lplr_cli.ntk.structured.factors.Kind` and a
:class:`lplr_cli.ntk.structured.factors.Term` what their parameters' gradients are made of; where those of another
module serve, it takes them. Nothing else knows which kinds there are.
"""

from importlib import import_module
from pkgutil import iter_modules

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
