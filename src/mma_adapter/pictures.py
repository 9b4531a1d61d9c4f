"""Labelled pictures as training input: decoded once, transformed as a pure function of their place.

What a training picture looks like depends on (seed, epoch, index) and on nothing else: not on the
global random state, the number of workers, or where a run was interrupted and resumed.

Shapes: S side of the square the model sees.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .data.samples import Sample, open_image
from .data.transforms import TrainTransform

_BYTES_PER_PIXEL = 4  # Pillow pads RGB


class Pictures(Dataset):
    """Training pictures, asked for by (epoch, index).

    Args:
        samples: The pictures.
        transform: Draws from the generator it is given.
        seed: Seed of the drawing.
    """

    def __init__(self, samples: Sequence[Sample], transform: TrainTransform, seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return `pixel_values` (3, S, S) and the label of one picture in one epoch."""
        epoch, index = key
        sample = self.samples[index]
        pixel_values = self.transform(open_image(sample), _generator(self.seed, epoch, index))
        return {"pixel_values": pixel_values, "labels": sample.label}


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): a new permutation per epoch, a pure function of seed and epoch.

    A last batch that is not full is dropped, unless it is the only one (as in Dassl's loader).

    Args:
        num_samples: Number of pictures.
        batch_size: Pictures per batch.
        seed: Seed of the permutations.
        current_epoch: Called when an epoch begins.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, current_epoch: Callable[[], int]
    ) -> None:
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.current_epoch = current_epoch
        self.drop_last = num_samples >= batch_size

    def __len__(self) -> int:
        return max(1, self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.current_epoch()
        generator = _generator(self.seed, epoch, "order")
        order = iter(torch.randperm(self.num_samples, generator=generator).tolist())
        for _ in range(len(self)):
            yield [(epoch, index) for index in islice(order, self.batch_size)]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return `pixel_values` (B, 3, S, S) and `labels` (B,)."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def keep_decoded(samples: Sequence[Sample], max_bytes: int) -> list[Sample]:
    """Decode pictures in threads and keep them whole with their samples, up to a limit.

    Args:
        samples: Pictures.
        max_bytes: Memory for decoded pictures; those after it is full stay as they are.

    Returns:
        The samples in order.

    Raises:
        DataError: A picture that was decoded cannot be read; the message names it.
    """
    kept: list[Sample] = []
    free, window = max_bytes, 16 * _num_threads()
    with ThreadPoolExecutor(_num_threads()) as pool:
        while len(kept) < len(samples) and free > 0:
            # In windows, so that not much more than the limit is ever decoded.
            part = samples[len(kept) : len(kept) + window]
            for sample, image in zip(part, pool.map(open_image, part), strict=True):
                free -= image.width * image.height * _BYTES_PER_PIXEL
                kept.append(replace(sample, image=image) if free >= 0 else sample)
    return kept + list(samples[len(kept) :])


def _num_threads() -> int:
    return min(8, os.cpu_count() or 1)


def _generator(*key: int | str) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
