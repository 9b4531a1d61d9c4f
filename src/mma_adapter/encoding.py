"""Run the towers of a frozen dual encoder exactly, but without the work nobody reads.

The text tower is causal, so a class prompt matters up to its end token only; all prompts share
their first tokens; and in the last layer a single token per sequence is pooled. These functions run
a tower's own modules over just those tokens and return what the host's `forward` would. Where the
host is not built that way (SigLIP has no causal mask), only the exact parts apply.

Shapes: N prompts, M own tokens of all prompts together, P shared prefix tokens, S longest prompt
without its prefix, B images, L tokens, D width, H heads, E size of the joint space.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .backbones import (
    LayerParts,
    TowerParts,
    attention_dropout,
    checkpoints,
    containers,
    embed_image,
    embed_text,
    first_norm,
    layer_parts,
    pool_image,
)
from .injection import Branch
from .operators import linear, mlp

# Up to this many keys the fused attention kernels cost more than they save: thousands of prompts of
# ten tokens are batched small products (on CPUs by a factor of two to ten).
_SHORT = 32


@dataclass(frozen=True)
class FastPaths:
    """Switches of the exact fast paths; all on by default, `FastPaths.off()` for none.

    Args:
        cut_prompts: Drop the tokens after each prompt's end token (causal hosts).
        share_prefix: Run the tokens all prompts begin with once (causal hosts).
        cache_lower_layers: Keep all that comes before the branch of the first adapted text layer.
        pool_last_layer: In the last layer run only the pooled token through query, MLP and adapter.
        text_memory_bytes: Bytes the text tower may keep for the backward pass; longer class lists
            run in chunks, all but one of which are computed again in the backward pass. None is a
            quarter of what is free, on a CPU at most 128 MiB.
    """

    cut_prompts: bool = True
    share_prefix: bool = True
    cache_lower_layers: bool = True
    pool_last_layer: bool = True
    text_memory_bytes: int | None = None

    @classmethod
    def off(cls) -> "FastPaths":
        """Return the plain path: every token of every prompt through every layer, every time."""
        return cls(False, False, False, False, 2**62)


@dataclass(frozen=True)
class PromptPlan:
    """Which tokens of a list of prompts to run, and where they sit.

    Args:
        prefix: Ids every prompt begins with, (P,); may be empty.
        own: Ids of each prompt's other tokens up to the last one that matters, packed, (M,).
        lengths: Number of own tokens of each prompt, (N,).
        pooled: Index of each prompt's pooled token among the own tokens, (N,).
        causal: Whether a token sees earlier tokens only.
    """

    prefix: Tensor
    own: Tensor
    lengths: Tensor
    pooled: Tensor
    causal: bool

    @property
    def num_tokens(self) -> int:
        """Number of tokens that pass through a layer, P + M."""
        return len(self.prefix) + len(self.own)

    @cached_property
    def longest(self) -> int:
        """Length S of the longest prompt without the prefix."""
        return int(self.lengths.max())

    @cached_property
    def real(self) -> Tensor:
        """Which cells of the padded (N, S) layout hold a token."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    def cells(self) -> Tensor:
        """Where each own token sits in the flattened (N, S) layout, (M,)."""
        return self.real.flatten().nonzero().squeeze(1)

    def to(self, device: torch.device) -> "PromptPlan":
        """Return the plan with its tensors on `device`."""
        return PromptPlan(
            self.prefix.to(device),
            self.own.to(device),
            self.lengths.to(device),
            self.pooled.to(device),
            self.causal,
        )

    def chunks(self, max_tokens: int) -> list["PromptPlan"]:
        """Split evenly into plans of at most `max_tokens` own tokens, or a single prompt each."""
        even = math.ceil(len(self.own) / math.ceil(len(self.own) / max_tokens))
        max_tokens = min(max_tokens, even + self.longest - 1)
        plans, first, ends = [], 0, self.lengths.cumsum(0).tolist()
        while first < len(ends):
            begin = ends[first - 1] if first else 0
            last = first + 1
            while last < len(ends) and ends[last] - begin <= max_tokens:
                last += 1
            plans.append(
                PromptPlan(
                    self.prefix,
                    self.own[begin : ends[last - 1]],
                    self.lengths[first:last],
                    self.pooled[first:last] - begin,
                    self.causal,
                )
            )
            first = last
        return plans


def plan_prompts(
    input_ids: Tensor, pooled: Tensor, *, causal: bool, paths: FastPaths
) -> PromptPlan:
    """Decide which tokens of `input_ids` (N, L) lead to the `pooled` positions (N,)."""
    n, length = input_ids.shape
    lengths = pooled + 1 if causal and paths.cut_prompts else torch.full((n,), length)
    shared = 0
    if causal and paths.share_prefix:
        same = (input_ids == input_ids[0]).all(dim=0).tolist()
        # Every prompt keeps its pooled token for itself.
        limit = int(pooled.min())
        while shared < limit and same[shared]:
            shared += 1
    lengths = lengths - shared
    positions = torch.arange(length)[None]
    keep = (positions >= shared) & (positions < (lengths + shared)[:, None])
    begins = lengths.cumsum(0) - lengths
    return PromptPlan(
        input_ids[0, :shared], input_ids[keep], lengths, begins + pooled - shared, causal
    )


def can_run(tower: TowerParts) -> bool:
    """Return whether the tower's layers may be taken apart.

    They may not where somebody else's hooks, checkpointing, sharding or dropout would be bypassed.
    """
    for layer in tower.layers:
        hooks = [
            hook
            for module in containers(layer)
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ]
        if any(not isinstance(hook, Branch) for hook in hooks) or attention_dropout(layer):
            return False
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            return False
    return not checkpoints(tower)


class LowerStates(NamedTuple):
    """What the layers below leave; in a frozen host it stays the same while adapters train.

    Args:
        hidden: Hidden states (P + M, D) leaving the last of these layers.
        normed: What that layer's branch reads, (P + M, D), if its sum is still to be added.
    """

    hidden: Tensor
    normed: Tensor | None


def lower_text_states(
    text: TowerParts, plan: PromptPlan, depth: int, *, branched: bool
) -> LowerStates:
    """Run the first `depth` layers without branches; `branched` if the last of them has one."""
    # One row per prompt only to look up positions; the packed tokens are cut out again.
    shared = len(plan.prefix)
    rows = plan.own.new_zeros(len(plan.lengths), shared + plan.longest)
    rows[:, :shared] = plan.prefix
    rows[:, shared:][plan.real] = plan.own
    x = embed_text(text, rows)  # (N, P + S, D)
    x = torch.cat([x[0, :shared], x[:, shared:][plan.real]])  # (P + M, D)
    below = x
    for layer in text.layers[:depth]:  # pyright: ignore[reportGeneralTypeIssues]
        below, x = x, _text_layer(layer, x, plan, None)
    return LowerStates(x, first_norm(text.layers[depth - 1])(below) if branched else None)


def encode_text(
    text: TowerParts,
    plan: PromptPlan,
    lower: LowerStates,
    depth: int,
    branches: Mapping[int, Branch],
    *,
    pool_last: bool,
    max_tokens: int | None = None,
) -> Tensor:
    """Return text features (N, E), not normalised, from what `depth` layers left.

    Args:
        text: The text tower.
        plan: The prompts.
        lower: What these layers left.
        depth: Number of layers already run.
        branches: Adapters by layer index, counted from 0.
        pool_last: Run the last layer for the pooled tokens only.
        max_tokens: Keep so many own tokens for the backward pass; longer lists run in chunks of
            that size, all but the last of which are computed again. None keeps everything.
    """
    shared, last = len(plan.prefix), len(text.layers) - 1

    def run(part: PromptPlan, x: Tensor, normed: Tensor | None) -> Tensor:
        if normed is not None:
            x = _add_branch(branches[depth - 1], normed, x.clone())  # kept for the next step
        for index in range(depth, last + 1):
            pooled_only = pool_last and index == last
            x = _text_layer(text.layers[index], x, part, branches.get(index), pooled_only)
        if not (pool_last and depth <= last):
            x = x[shared:][part.pooled]
        return text.head(text.final_norm(x))

    if max_tokens is None or len(plan.own) <= max_tokens:
        return run(plan, *lower)
    parts, features, begin = plan.chunks(max_tokens), [], shared

    def rows(states: Tensor, part: PromptPlan) -> Tensor:
        return torch.cat([states[:shared], states[begin : begin + len(part.own)]])

    for part in parts:
        states = [None if each is None else rows(each, part) for each in lower]
        begin += len(part.own)
        if part is parts[-1]:  # the first whose backward pass runs: it is gone before the others'
            features.append(run(part, *states))  # pyright: ignore[reportArgumentType]
        else:
            features.append(checkpoint(run, part, *states, use_reentrant=False))
    return torch.cat(features)


def encode_image(
    vision: TowerParts,
    pixel_values: Tensor,
    branches: Mapping[int, Branch],
    *,
    pools_first: bool,
    pool_last: bool,
) -> Tensor:
    """Return image features (B, E), not normalised, for pixel values (B, 3, height, width)."""
    x, last = embed_image(vision, pixel_values), len(vision.layers) - 1
    for index, layer in enumerate(vision.layers):
        parts, branch = layer_parts(layer), branches.get(index)
        normed = parts.first_norm(x)
        if index == last and pools_first and pool_last:
            # The others are still attended to, but nobody reads what becomes of them.
            # Packed, or torch would pick its product by whether the weights need gradients, and a
            # trained adapter would differ from the same one reloaded in the last bit.
            queries = normed[:, :1].contiguous()
            x = _finish(parts, x[:, :1], _attend(parts, queries, normed), queries, branch)
        else:
            x = _finish(parts, x, _attend(parts, normed, normed), normed, branch)
    if not pools_first:
        return pool_image(vision, x)
    return vision.head(vision.final_norm(x[:, 0]))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)  # (..., L, D) -> (..., H, L, D/H)


def _attend(parts: LayerParts, queries: Tensor, keys: Tensor) -> Tensor:
    """Full attention of `queries` (B, Lq, D) over `keys` (B, L, D), not yet projected."""
    q, k, v = linear(parts.query, queries), linear(parts.key, keys), linear(parts.value, keys)
    q, k, v = (_heads(t, parts.num_heads) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention where `seen`; q (N, H, Lq, D/H), k and v (N, H, L, D/H)."""
    if k.shape[-2] > _SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.masked_fill(~seen, float("-inf")).softmax(dim=-1).to(v.dtype) @ v


def _finish(
    parts: LayerParts, x: Tensor, attended: Tensor, normed: Tensor, branch: Branch | None
) -> Tensor:
    """Everything in a layer after attention; all tensors hold the same tokens, (..., D)."""
    x = x + linear(parts.out, attended)
    out = x + mlp(parts.widen, parts.activation, parts.narrow, parts.second_norm(x))
    return out if branch is None else _add_branch(branch, normed, out)


def _add_branch(branch: Branch, normed: Tensor, onto: Tensor) -> Tensor:
    return branch.adapter(normed, tower=branch.tower, pair=branch.pair, onto=onto)


def _text_layer(
    layer: nn.Module,
    x: Tensor,
    plan: PromptPlan,
    branch: Branch | None,
    pooled_only: bool = False,
) -> Tensor:
    """Run one layer over packed prompts.

    Args:
        layer: A text layer.
        x: Hidden states of the prefix and of all own tokens, (P + M, D).
        plan: The prompts.
        branch: The layer's adapter.
        pooled_only: Return the pooled tokens, (N, D), instead of all.
    """
    parts, n, sizes = layer_parts(layer), len(plan.lengths), [len(plan.prefix), len(plan.own)]
    shared, heads = sizes[0], parts.num_heads
    normed = first_norm(layer)(x)

    def padded(packed: Tensor) -> Tensor:  # (M, D) -> (N, S, D)
        rows = packed.new_zeros(n * plan.longest, packed.shape[-1])
        return rows.index_copy(0, plan.cells, packed).view(n, plan.longest, -1)

    prefix_keys, own_keys = linear(parts.key, normed).split(sizes)
    prefix_values, own_values = linear(parts.value, normed).split(sizes)
    k = _heads(torch.cat([prefix_keys.expand(n, -1, -1), padded(own_keys)], dim=1), heads)
    v = _heads(torch.cat([prefix_values.expand(n, -1, -1), padded(own_values)], dim=1), heads)
    columns = torch.arange(shared + plan.longest, device=x.device)

    if pooled_only:
        x, normed = x[shared:][plan.pooled], normed[shared:][plan.pooled]  # (N, D)
        if plan.causal:
            own = plan.pooled - (plan.lengths.cumsum(0) - plan.lengths)  # position among its own
            seen = columns <= (shared + own)[:, None]
        else:
            seen = F.pad(plan.real, (shared, 0), value=True)
        q = _heads(linear(parts.query, normed)[:, None], heads)  # (N, H, 1, D/H)
        attended = _masked_attention(q, k, v, seen[:, None, None])
        return _finish(parts, x, attended.transpose(1, 2).flatten(1), normed, branch)

    prefix_queries, own_queries = linear(parts.query, normed).split(sizes)
    if plan.causal:
        # Padding sits behind every real token, so the causal mask alone hides it.
        seen = columns <= shared + torch.arange(plan.longest, device=x.device)[:, None]
    else:
        seen = F.pad(plan.real, (shared, 0), value=True)[:, None, None]
    q = _heads(padded(own_queries), heads)  # (N, H, S, D/H)
    attended = _masked_attention(q, k, v, seen)
    attended = attended.transpose(1, 2).flatten(-2).flatten(0, 1)[plan.cells]  # (M, D)
    if shared:
        q, k, v = (_heads(t, heads)[None] for t in (prefix_queries, prefix_keys, prefix_values))
        first = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = torch.cat([first[0].transpose(0, 1).flatten(1), attended])
    return _finish(parts, x, attended, normed, branch)
