"""The structured engine: K layer by layer from activations and back-propagated output gradients, without J.

For a linear map used at positions t, ∂f_c/∂W = Σ_t b_ct a_tᵀ, so two samples meet as

    ⟨∂f_c(x)/∂W, ∂f_d(x')/∂W⟩ = Σ_{t,t'} (a_t·a'_t') (b_ct·b'_dt')        pairwise form
                              = ⟨G_c, G'_d⟩,  G_c = Σ_t b_ct a_tᵀ            explicit form

With one position the pairwise form is (A Aᵀ + 1) ∘ (B Bᵀ), the 1 from the bias. Each parameter takes the form
that needs fewer floating-point operations. Parameters whose uses are not understood go to the Jacobian engine; that
they are understood is checked, not assumed, by comparing a weighted sum of the factors with autograd's gradient.

A call of :func:`gram` runs through the modules in this order: ``plan`` (which parameters have rules), ``capture`` (what
a forward pass does with them), ``collect`` (their factors), ``factors`` (what a factor is), ``accumulate`` (factors
into K), ``rounding`` (what that may have cost); ``products`` lets the factors act on vectors instead. A kind of layer
is one module in ``rules``.
"""

from lplr_cli.ntk.structured import rules as rules  # registers them
from lplr_cli.ntk.structured.accumulate import InputProducts
from lplr_cli.ntk.structured.collect import FlowChangedError
from lplr_cli.ntk.structured.gram import Gram, gram, trace
from lplr_cli.ntk.structured.plan import Plan, plan_for
from lplr_cli.ntk.structured.products import FactoredJacobian
from lplr_cli.ntk.structured.rounding import Rounding

__all__ = [
    "FactoredJacobian",
    "FlowChangedError",
    "Gram",
    "InputProducts",
    "Plan",
    "Rounding",
    "gram",
    "plan_for",
    "trace",
]
