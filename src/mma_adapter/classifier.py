"""A few-shot classifier: a dual encoder, its class prompts, and the logits between the two.

logits = exp(logit_scale) * cosine(image feature, text feature), plus the host's bias for SigLIP.

Shapes: B images, K classes, E size of the joint space. Features are of unit length.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from .backbones import (
    TowerParts,
    as_features,
    context_length,
    describe,
    logit_scale_and_bias,
    lower_parameters,
    pooled_positions,
)
from .encoding import (
    FastPaths,
    LowerStates,
    can_run,
    encode_image,
    encode_text,
    lower_text_states,
    plan_prompts,
)
from .errors import ConfigError
from .injection import active_branches
from .prompts import check_classnames, make_prompts, tokenize

TEMPLATE = "a photo of a {}."
"""The paper's prompt for every dataset (trainers/mmadapter.py:98-110)."""

# Floats kept for the backward pass per token and layer, in widths of the tower: the inputs of two
# norms and of a branch, attended values, four for the MLP's activation, and nine for queries, keys
# and values, which are padded to the longest prompt.
_SAVED_WIDTHS = 17

# On a CPU the same memory serves everything else, so speed does not get all of it; what keeping
# more would bring is a row of `benchmarks/step.py --without`.
_CPU_TEXT_BYTES = 128 * 2**20

Function = TypeVar("Function", bound=Callable)


def _outside_graph(function: Function) -> Function:
    """Keep Python bookkeeping out of compiled graphs: `torch.compile` takes the image tower."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


class FewShotClassifier(nn.Module):
    """Classify images by comparing them with class prompts.

    Text features are recomputed while text weights are being trained, and otherwise kept for as
    long as no weight changes; it does not matter whether the module is in train or eval mode. The
    results equal the plain path through the host to float precision.

    Args:
        model: A dual encoder, with or without an adapter.
        tokenizer: The tokenizer that belongs to it.
        classnames: Names of the K classes; "_" counts as a space.
        template: Prompt with `{}` for the class name, or several, whose unit features are averaged
            (the usual ensemble).
        paths: Switches of the exact fast paths.
        allow_duplicates: Accept equal class names (ImageNet has two "missile"); their scores are
            equal, and the first wins.

    Raises:
        DataError: A class name or template cannot be used.
        UnsupportedHostError: `model` is not a dual encoder this library knows.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        classnames: Sequence[str],
        template: str | Sequence[str] = TEMPLATE,
        *,
        paths: FastPaths | None = None,
        allow_duplicates: bool = False,
    ) -> None:
        super().__init__()
        backbone = describe(model)
        if set(backbone.towers) != {"text", "vision"}:
            raise ConfigError(
                f"a classifier needs both towers, {type(model).__name__} has "
                f"{', '.join(backbone.towers)}; pass the two-tower model, such as CLIPModel"
            )
        self.model, self.tokenizer, self.paths = model, tokenizer, paths or FastPaths()
        self.template = template if isinstance(template, str) else tuple(template)
        self.classnames = tuple(classnames)
        # Equal names are scored once: the place of a row in a product can change its last bit.
        cleaned = check_classnames(classnames, allow_duplicates=allow_duplicates)
        distinct = list(dict.fromkeys(cleaned))
        self._places = None  # of each class among the distinct ones
        if len(distinct) < len(cleaned):
            self._places = torch.tensor([distinct.index(name) for name in cleaned])
        self._num_distinct = len(distinct)
        prompts = make_prompts(distinct, template, backbone.family)
        self.input_ids = tokenize(
            model, tokenizer, prompts, context_length(backbone.towers["text"])
        )
        pooled = pooled_positions(model, self.input_ids)
        causal = backbone.family.causal_text
        if causal and self.paths.cut_prompts:
            self.input_ids = self.input_ids[:, : int(pooled.max()) + 1]
        self._plan = plan_prompts(self.input_ids, pooled, causal=causal, paths=self.paths)
        self._lower: tuple[Any, LowerStates] | None = None
        self._cached: tuple[Any, Tensor, Tensor] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classnames)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **image_inputs: Any
    ) -> ImageClassifierOutput:
        """Score images against all classes.

        Args:
            pixel_values: Images as the host wants them, (B, 3, height, width).
            labels: Class indices (B,); with them, the mean cross-entropy is returned as `loss`.
            image_inputs: What else the host's image tower takes (SigLIP 2 NaFlex).

        Returns:
            `logits` (B, K) in float32, and `loss` where labels were given.
        """
        text = self._distinct_features()
        image = self.image_features(pixel_values, **image_inputs)
        scale, bias = logit_scale_and_bias(self.model)
        # Never in half precision: neighbouring logits would round to the same number.
        with torch.autocast(image.device.type, enabled=False):
            logits = scale.float() * image @ text.t()
            if bias is not None:
                logits = logits + bias.float()
            logits = self._spread(logits, dim=1)
            loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)  # pyright: ignore

    def image_features(self, pixel_values: Tensor, **image_inputs: Any) -> Tensor:
        """Return unit image features (B, E), float32."""
        backbone = describe(self.model)
        vision = backbone.towers["vision"]
        if image_inputs or self.paths == FastPaths.off() or not can_run(vision):
            features = as_features(
                self.model.get_image_features(pixel_values=pixel_values, **image_inputs)  # pyright: ignore
            )
        else:
            features = encode_image(
                vision,
                pixel_values,
                active_branches(self.model, "vision"),
                pools_first=backbone.family.pools_first_image_token,
                pool_last=self.paths.pool_last_layer,
            )
        return F.normalize(features.float(), dim=-1)

    def text_features(self) -> Tensor:
        """Return unit text features (K, E), float32: one row per class, templates averaged."""
        return self._spread(self._distinct_features(), dim=0)

    def _spread(self, values: Tensor, dim: int) -> Tensor:
        """Go from distinct class names to classes."""
        if self._places is None:
            return values
        return values.index_select(dim, self._places.to(values.device))

    @_outside_graph
    def _distinct_features(self) -> Tensor:
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._text_parameters()):
            return self._encode_text()
        key, weights = self._weights_key()
        if self._cached is None or self._cached[0] != key or not _equal(self._cached[1], weights):
            # Out of inference mode, because a later training step may use the same tensor.
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (key, weights.clone(), self._encode_text())
        return self._cached[2]

    def refresh(self) -> None:
        """Forget kept text features and hidden states.

        Needed only after host weights were changed through `.data`, which leaves no trace.
        """
        self._lower = self._cached = None

    def _text_parameters(self) -> list[nn.Parameter]:
        text = describe(self.model).towers["text"]
        own = [p for n, p in self.model.named_parameters() if n.startswith(("mma.", "text_proj"))]
        return [*text.root.parameters(), *own]

    def _weights_key(self) -> tuple[Any, Tensor]:
        """Return what text features depend on: host versions and settings, and adapter weights.

        The adapter's weights are compared in full, since they are small and change all the time;
        the host's by identity and version counter.
        """
        device = next(self.model.parameters()).device
        branches = active_branches(self.model, "text")
        adapter = next(iter(branches.values())).adapter if branches else None
        flat = [p.detach().flatten() for p in adapter.parameters()] if adapter else []
        weights = torch.cat(flat) if flat else torch.empty(0, device=device)
        settings = (id(adapter), adapter.config if adapter else None, *_autocast(device))
        return (settings, _versions(self._text_parameters(), skip=adapter)), weights

    def _encode_text(self) -> Tensor:
        backbone = describe(self.model)
        text = backbone.towers["text"]
        if self.paths == FastPaths.off() or not can_run(text):
            device = next(text.root.parameters()).device
            features = as_features(
                self.model.get_text_features(input_ids=self.input_ids.to(device))  # pyright: ignore
            )
        else:
            features = self._encode_text_fast(text)
        features = F.normalize(features.float(), dim=-1)
        if len(features) == self._num_distinct:
            return features
        return F.normalize(features.unflatten(0, (self._num_distinct, -1)).mean(1), dim=-1)

    def _encode_text_fast(self, text: TowerParts) -> Tensor:
        device = next(text.root.parameters()).device
        if self._plan.own.device != device:
            self._plan = self._plan.to(device)
        branches = active_branches(self.model, "text")
        last = len(text.layers) - 1
        first = min(branches, default=last)
        branched = first < last  # the last layer runs for the pooled tokens only
        depth = first + branched
        return encode_text(
            text,
            self._plan,
            self._lower_states(text, depth, branched=branched),
            depth,
            branches,
            pool_last=self.paths.pool_last_layer,
            max_tokens=self._chunk_tokens(text, len(text.layers) - depth),
        )

    def _lower_states(self, text: TowerParts, depth: int, *, branched: bool) -> LowerStates:
        lower = lower_parameters(text, depth)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in lower)
        if trained or not self.paths.cache_lower_layers:
            with nullcontext() if trained else torch.no_grad():
                return lower_text_states(text, self._plan, depth, branched=branched)
        device = self._plan.own.device
        key = (depth, branched, *_autocast(device), _versions(lower))
        if self._lower is None or self._lower[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                states = lower_text_states(text, self._plan, depth, branched=branched)
                self._lower = (key, states)
        return self._lower[1]

    def _chunk_tokens(self, text: TowerParts, layers: int) -> int | None:
        if not torch.is_grad_enabled():
            return None
        budget = self.paths.text_memory_bytes
        if budget is None:
            device = self._plan.own.device
            budget = free_bytes(device) // 4
            if device.type == "cpu":
                budget = min(budget, _CPU_TEXT_BYTES)
        per_token = _SAVED_WIDTHS * text.width * layers * 4
        return max(1, budget // per_token)


def free_bytes(device: torch.device) -> int:
    """Return the bytes free on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 4 * 2**30


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def _autocast(device: torch.device) -> tuple[bool, torch.dtype]:
    kind = device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _versions(parameters: Sequence[nn.Parameter], skip: nn.Module | None = None) -> tuple:
    skipped = {id(p) for p in skip.parameters()} if skip is not None else set()
    return tuple(
        (p.data_ptr(), 0 if p.is_inference() else p._version)
        for p in parameters
        if id(p) not in skipped
    )
