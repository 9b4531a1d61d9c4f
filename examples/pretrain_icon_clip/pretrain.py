"""Trains the small icon CLIP on the pictures that `render_icons.mjs` drew.

    python pretrain.py PICTURES OUT --steps 2500                  # from scratch
    python pretrain.py PICTURES OUT --init MODEL --lr 6e-4 --minutes 60   # go on from a model
    python pretrain.py PICTURES OUT --steps 2500 --resume         # after a stop

The model is an ordinary `transformers.CLIPModel` with ViT-B/16's depth (12 + 12 layers) at width
128. The learning rate follows a cosine over `--steps`, or over `--minutes` of training time,
whichever ends first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluate import features, zero_shot
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from mma_adapter.demo import icon_clip_path, load_icon_clip

TEMPLATES = (
    *("{}", "{}", "{} icon", "an icon of a {}.", "a photo of a {}.", "a picture of a {}."),
    *("a drawing of a {}.", "a {} symbol.", "{} emoji", "a rendering of a {}."),
)
SIDE, CROP = 48, 40  # rendered, and seen by the model
PROTOTYPE_SCALE = 16.0
ATTENTION = (
    "eager"  # on the CPU the fused kernel's backward pass takes twice as long as all the rest
)
SAVE_EVERY_S = 240
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def load_pictures(folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """All pictures (N, 3, 48, 48) uint8, the index of each one's name (N,), and the names."""
    entries = json.loads((folder / "pictures.json").read_text())
    flat = np.fromfile(folder / "pictures.bin", dtype=np.uint8)
    pictures = torch.from_numpy(flat.reshape(len(entries), SIDE, SIDE, 3)).permute(0, 3, 1, 2)
    names = sorted({entry["name"] for entry in entries})
    index = {name: i for i, name in enumerate(names)}
    return pictures.contiguous(), torch.tensor([index[e["name"]] for e in entries]), names


def augment(pictures: torch.Tensor) -> torch.Tensor:
    """Pixel values (B, 3, 40, 40) from uint8 pictures: moved, scaled, inverted, recoloured."""
    n, device = len(pictures), pictures.device
    ink = 1 - pictures.float() / 255  # 0 is paper, so that what moves in from outside is paper too
    theta = torch.zeros(n, 2, 3, device=device)
    # The sampling grid shrinks where the picture grows.
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / torch.empty(n, device=device).uniform_(0.9, 1.35)
    theta[:, :, 2].uniform_(-0.15, 0.15)
    grid = F.affine_grid(theta, [n, 3, CROP, CROP], align_corners=False)
    ink = F.grid_sample(ink, grid, align_corners=False)

    def chance(p: float) -> torch.Tensor:
        return torch.rand(n, 1, 1, 1, device=device) < p

    dark = 0.45 * torch.rand(n, 3, 1, 1, device=device)
    light = 1 - 0.4 * torch.rand(n, 3, 1, 1, device=device)
    amount = ink.mean(dim=1, keepdim=True)
    image = torch.where(chance(0.4), light + (dark - light) * amount, 1 - ink)
    image = torch.where(chance(0.15), 1 - image, image)
    return (image - MEAN.to(device)) / STD.to(device)


def new_model(names: list[str]) -> tuple[CLIPModel, object]:
    """A model with random weights in the shipped one's shape, and a tokenizer of its own."""
    captions = [template.format(name) for template in TEMPLATES for name in names]
    shipped = AutoTokenizer.from_pretrained(icon_clip_path())
    tokenizer = shipped.train_new_from_iterator(captions, vocab_size=len(shipped))
    config = CLIPConfig.from_pretrained(icon_clip_path())
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.bos_token_id = tokenizer.bos_token_id
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    config._attn_implementation = ATTENTION
    model = CLIPModel(config).float()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                # Two residual writers per layer and twelve layers would otherwise add up.
                smaller = 2.45 if name.endswith(("out_proj", "fc2")) else 1.0
                module.weight.normal_(0, module.in_features**-0.5 / smaller)
                if module.bias is not None:
                    module.bias.zero_()
        tokens = model.text_model.embeddings.token_embedding.weight
        tokens.normal_(0, 1)
        # They are in every caption; at full size they drown the words.
        tokens[[tokenizer.bos_token_id, tokenizer.eos_token_id]] *= 0.1
        model.logit_scale.fill_(math.log(PROTOTYPE_SCALE))
    return model, tokenizer


def caption_features(model: CLIPModel, tokenizer, captions: list[str]) -> torch.Tensor:
    """Unit-length text features (B, D)."""
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    return features(model.get_text_features(**tokens.to(next(model.parameters()).device)))


def joint_loss(model, prototypes, image, text, labels) -> torch.Tensor:
    """Contrastive loss with equal names as joint positives, plus the classification of both sides.

    Args:
        model: Gives the temperature of the contrastive part.
        prototypes: Trained table, one row per name (K, D). Without it learning hardly starts at
            this size.
        image: Unit-length image features (B, D).
        text: Unit-length text features (B, D).
        labels: Indices of the names (B,).
    """
    # float32 throughout: in bfloat16 the early differences between logits are rounded away.
    logits = model.logit_scale.exp() * image @ text.T
    same = (labels[:, None] == labels[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    table = PROTOTYPE_SCALE * F.normalize(prototypes.weight, dim=-1).T
    by_name = F.cross_entropy(image @ table, labels) + 0.5 * F.cross_entropy(text @ table, labels)
    return contrastive + by_name


class Run:
    """Everything that must survive a stop: weights, prototypes, optimizer, counters."""

    def __init__(self, model: CLIPModel, prototypes: nn.Embedding, lr: float, out: Path) -> None:
        self.model, self.prototypes, self.out = model, prototypes, out
        weights = [*model.parameters(), *prototypes.parameters()]
        decayed = [w for w in weights if w.ndim > 1]
        plain = [w for w in weights if w.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
        self.weights = weights
        self.step, self.seconds = 0, 0.0

    def save(self) -> None:
        """Write `checkpoint.pt` whole or not at all."""
        state = {
            name: getattr(self, name).state_dict() for name in ("model", "prototypes", "optimizer")
        }
        state |= {"step": self.step, "seconds": self.seconds}
        torch.save(state, self.out / "checkpoint.tmp")
        os.replace(self.out / "checkpoint.tmp", self.out / "checkpoint.pt")

    def load(self) -> None:
        """Read `checkpoint.pt` back."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        for name in ("model", "prototypes", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]


def endless_batches(num_pictures: int, size: int) -> Iterator[torch.Tensor]:
    """Indices of one batch after another, every picture once per round."""
    while True:
        yield from torch.randperm(num_pictures)[: num_pictures // size * size].split(size)


def train(run: Run, tokenizer, pictures, labels, names: list[str], args) -> None:
    """Steps until `--steps` or `--minutes` is reached, saving every few minutes."""
    device = next(run.model.parameters()).device
    random.seed(run.step)
    torch.manual_seed(run.step)
    batches = endless_batches(len(labels), args.batch)
    started, saved, shown = time.monotonic() - run.seconds, time.monotonic(), None
    progress = max(run.step / args.steps, run.seconds / (60 * args.minutes))
    while progress < 1:
        batch = next(batches)
        target = labels[batch].to(device)
        captions = [random.choice(TEMPLATES).format(names[i]) for i in target.tolist()]
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        for group in run.optimizer.param_groups:
            group["lr"] = args.lr * min(cosine, (run.step + 1) / args.warmup)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=not args.fp32):
            image = run.model.get_image_features(augment(pictures[batch].to(device)))
            text = caption_features(run.model, tokenizer, captions)
        loss = joint_loss(run.model, run.prototypes, features(image), text, target)
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()} at step {run.step}; lower --lr")
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.weights, 1.0)
        run.optimizer.step()
        run.step, run.seconds = run.step + 1, time.monotonic() - started
        progress = max(run.step / args.steps, run.seconds / (60 * args.minutes))
        shown = loss.item() if shown is None else 0.95 * shown + 0.05 * loss.item()
        if run.step % 20 == 0:
            print(
                f"step {run.step}  {run.seconds:.0f} s  {100 * progress:.1f} %  loss {shown:.3f}",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY_S:
            run.save()
            saved = time.monotonic()
    run.save()


def export(model: CLIPModel, tokenizer, out: Path) -> None:
    """Write the `transformers` folder: float16 weights, tokenizer, image processor."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = (icon_clip_path() / "preprocessor_config.json").read_text()
    (out / "preprocessor_config.json").write_text(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder written by render_icons.mjs")
    parser.add_argument("out", type=Path, help="folder for checkpoints, then for the model")
    parser.add_argument("--init", type=Path, help="model to go on from; without it, random weights")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 in the towers")
    args = parser.parse_args()
    if args.steps == 10**9 and args.minutes == float("inf"):
        parser.error("say when to stop: --steps or --minutes")

    args.out.mkdir(parents=True, exist_ok=True)
    pictures, labels, names = load_pictures(args.pictures)
    torch.manual_seed(0)
    if args.init:
        model = CLIPModel.from_pretrained(args.init, attn_implementation=ATTENTION).float()
        tokenizer = AutoTokenizer.from_pretrained(args.init)
    else:
        model, tokenizer = new_model(names)
    prototypes = nn.Embedding(len(names), model.config.projection_dim)
    if args.init:
        # A fresh table would first pull the trained features apart again.
        with torch.no_grad():
            for start in range(0, len(names), 512):
                part = caption_features(model, tokenizer, names[start : start + 512])
                prototypes.weight[start : start + len(part)] = (
                    part * model.config.projection_dim**0.5
                )
    run = Run(model.to(args.device).train(), prototypes.to(args.device), args.lr, args.out)
    if args.resume:
        run.load()
    train(run, tokenizer, pictures, labels, names, args)

    export(model.eval(), tokenizer, args.out)
    report = {
        "new": zero_shot(model.float(), tokenizer),
        "steps": run.step,
        "seconds": round(run.seconds),
    }
    report["shipped"] = zero_shot(*load_icon_clip()[:2])
    (args.out / "eval.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"zero-shot, 218 classes: {report['new']['all']} % (shipped: {report['shipped']['all']} %)"
    )


if __name__ == "__main__":
    main()
