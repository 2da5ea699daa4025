"""Multi-head attention (Vaswani et al. 2017), recomputed from its projections so that each of them is a linear use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lplr_cli.ntk.structured.capture import Capture, arguments, rule
from lplr_cli.ntk.structured.rules.channelwise import Bias
from lplr_cli.ntk.structured.rules.linear import Linear

_NAMES = (
    "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn "
    "dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask "
    "use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight static_k static_v "
    "average_attn_weights is_causal"
)


@rule(F.multi_head_attention_forward)
def _attention(capture: Capture, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """As ``nn.MultiheadAttention`` calls it.

    Whatever lies outside (bias_k, added zeros, static keys, padding) runs as it is, without a rule.
    """
    given = dict(zip(_NAMES.split(), arguments(_NAMES, args, kwargs), strict=True))
    if _is_unusual(given):
        return func(*args, **kwargs)
    query, heads = given["query"], int(given["num_heads"])
    q, k, v = (_projected(capture, given, index, heads) for index in range(3))
    scores = q @ k.transpose(-2, -1) / (query.shape[-1] // heads) ** 0.5
    mask = _additive_mask(given["attn_mask"], heads, query.dtype)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    joined = (weights @ v).transpose(1, 2).flatten(2)
    out = F.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
    capture.record(given["out_proj_weight"], Linear(), joined, out)
    capture.record(given["out_proj_bias"], Bias(-1), None, out)
    shown = weights.mean(dim=1) if given["average_attn_weights"] in (None, True) else weights
    return out.transpose(0, 1), (shown if given["need_weights"] in (None, True) else None)


def _is_unusual(given: dict[str, Any]) -> bool:
    extra = ("bias_k", "bias_v", "static_k", "static_v", "key_padding_mask")
    return bool(
        any(given[k] is not None for k in extra)
        or given["add_zero_attn"]
        or given["use_separate_proj_weight"]
        or (given["training"] and given["dropout_p"])
        or given["query"].dim() != 3
        or given["in_proj_weight"] is None
    )


def _projected(capture: Capture, given: dict[str, Any], index: int, heads: int) -> Tensor:
    """Queries, keys or values by head, (n, heads, T, e / heads); their rows of the joint matrix are noted."""
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    size = given["query"].shape[-1]
    rows = slice(index * size, (index + 1) * size)
    # The layout of the arguments is (T, n, e); samples come first for the record.
    a = given[("query", "key", "value")[index]].transpose(0, 1)
    z = F.linear(a, weight[rows], None if bias is None else bias[rows])
    capture.record(weight, Linear(), a, z, rows)
    capture.record(bias, Bias(-1), None, z, rows)
    return z.reshape(*z.shape[:2], heads, -1).transpose(1, 2)


def _additive_mask(mask: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores: zeros, and minus infinity where a boolean mask forbids."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.reshape(-1, heads, *mask.shape[1:]) if mask.dim() == 3 else mask
