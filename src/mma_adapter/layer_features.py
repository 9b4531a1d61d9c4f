"""What leaves every layer of both towers: pooled states for probes, mean features for the gap.

Pooled is the CLS token (the mean of all tokens where the host has none) and the end token. For the
modality gap each layer's pooled state goes through the tower's final norm and projection, as if it
were the last layer.

Shapes: N items, L layers, D width of the tower, E size of the joint space, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .backbones import Backbone, context_length, pool_image, pooled_positions
from .prompts import make_prompts, tokenize

if TYPE_CHECKING:
    from .data import Dataset, Sample


@dataclass(frozen=True)
class Part:
    """The pooled states of one part of a data set at every layer, (L, N, D), and labels (N,)."""

    states: np.ndarray
    labels: np.ndarray

    def layer(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what leaves a layer, counted from 0."""
        return self.states[index], self.labels


@torch.no_grad()
def text_parts(
    model: nn.Module, tokenizer: Any, backbone: Backbone, dataset: Dataset, templates: Sequence[str]
) -> tuple[Part, Part, np.ndarray]:
    """Return prompts of even templates, of odd ones, and their mean unit features, (L, E)."""
    text = backbone.towers["text"]
    prompts = make_prompts(dataset.classnames, templates, backbone.family, allow_duplicates=True)
    ids = tokenize(model, tokenizer, prompts, context_length(text))
    at = pooled_positions(model, ids)
    device = next(text.root.parameters()).device
    hidden = text.root(input_ids=ids.to(device), output_hidden_states=True).hidden_states[1:]
    pooled = [h[torch.arange(len(ids)), at] for h in hidden]
    mean = torch.stack([_unit_mean(text.head(text.final_norm(h))) for h in pooled])
    labels = np.repeat(np.arange(dataset.num_classes), len(templates))
    odd = np.tile(np.arange(len(templates)) % 2, dataset.num_classes) == 1
    states = torch.stack(pooled).float().cpu().numpy()  # (L, N, D)
    train, test = (Part(states[:, half], labels[half]) for half in (~odd, odd))
    return train, test, mean.cpu().numpy()


def image_parts(
    backbone: Backbone, processor: Any, dataset: Dataset, shots: int, seed: int, batch_size: int
) -> tuple[Part, Part, np.ndarray]:
    """Return training pictures, test pictures, and the latter's mean unit features, (L, E)."""
    from .data import from_processor, sample_shots

    _, transform = from_processor(processor)
    chosen = [sample_shots(part, shots, seed) for part in (dataset.train, dataset.test)]
    made = [_image_states(backbone, transform, part, batch_size) for part in chosen]
    (train, _), (test, mean) = made
    labels = [np.array([sample.label for sample in part]) for part in chosen]
    return Part(train, labels[0]), Part(test, labels[1]), mean


@torch.no_grad()
def _image_states(
    backbone: Backbone, transform: Any, samples: Sequence[Sample], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled states (L, N, D) and mean unit features (L, E)."""
    from .data import open_image

    vision = backbone.towers["vision"]
    device = next(vision.root.parameters()).device
    states: list[Tensor] = []
    sums = torch.zeros(())
    for begin in range(0, len(samples), batch_size):
        batch = samples[begin : begin + batch_size]
        pixels = torch.stack([transform(open_image(sample)) for sample in batch]).to(device)
        hidden = vision.root(pixel_values=pixels, output_hidden_states=True).hidden_states[1:]
        first = backbone.family.pools_first_image_token
        pooled = [h[:, 0] if first else h.mean(1) for h in hidden]
        joint = [
            vision.head(vision.final_norm(p)) if first else pool_image(vision, h)
            for p, h in zip(pooled, hidden, strict=True)
        ]
        sums = sums + torch.stack([_unit_mean(features) * len(batch) for features in joint]).cpu()
        states.append(torch.stack(pooled).float().cpu())
    return torch.cat(states, 1).numpy(), (sums / len(samples)).numpy()


def _unit_mean(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1).mean(0)
