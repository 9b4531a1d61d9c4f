"""Seconds of the demo's training with all fast paths on, and with all of them off.

    python benchmarks/demo_training.py

Off means every token of every prompt through every layer of the host's own `forward` at every step.
The drawn pictures are kept in memory either way: to draw a photographed icon again is no cost that
other pictures have. Both ways train the demo's adapter on the demo's pictures with the demo's
recipe, in turn, in one process, and must have the same losses. Writes `results/demo_training.json`.
"""

import argparse
import dataclasses
import json
import sys
from functools import partial

import torch
from machine import alternate, describe_machine, summary, write

from mma_adapter import FastPaths, FewShotClassifier, inject_mma
from mma_adapter.data import from_processor
from mma_adapter.demo import TEMPLATE, load_icon_clip
from mma_adapter.demo.run import RECIPE
from mma_adapter.demo.splits import photographed_objects
from mma_adapter.pictures import keep_decoded
from mma_adapter.training import train_module

LARGEST_LOSS_DIFFERENCE = 1e-3
"""Rounding grows over the steps; a path that computed something else would end elsewhere."""


def train(epochs: int, *, fast: bool) -> list[float]:
    """Train the demo's adapter and return the loss of every step."""
    model, tokenizer, processor = load_icon_clip()
    data = photographed_objects("strong", classes="base")
    inject_mma(model, RECIPE.start_layer, scale=RECIPE.scale, seed=1)
    paths = FastPaths() if fast else FastPaths.off()
    classifier = FewShotClassifier(model, tokenizer, data.classnames, TEMPLATE, paths=paths)
    config = dataclasses.replace(RECIPE.train_config(1), epochs=epochs)
    samples = keep_decoded(data.train, config.cache_bytes)
    transform, _ = from_processor(processor)
    history, _ = train_module(classifier, samples, config, transform, callbacks=())
    return [record.loss for record in history]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="the demo itself trains for 20")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the demo does
    on, off = (train(1, fast=fast) for fast in (True, False))
    difference = max(abs(a - b) for a, b in zip(on, off, strict=True))
    assert difference < LARGEST_LOSS_DIFFERENCE, difference
    ways = {"paths on": partial(train, args.epochs, fast=True)}
    ways["paths off"] = partial(train, args.epochs, fast=False)
    seconds = alternate(ways, args.repeats, "cpu")
    payload = {
        **describe_machine("cpu"),
        "command": " ".join(["python benchmarks/demo_training.py", *sys.argv[1:]]),
        "epochs": args.epochs,
        "steps": len(on) * args.epochs,
        "largest_loss_difference": difference,
        "paths": {name: summary(values) for name, values in seconds.items()},
    }
    write("demo_training", payload)
    print(json.dumps(payload["paths"]), file=sys.stderr)


if __name__ == "__main__":
    main()
