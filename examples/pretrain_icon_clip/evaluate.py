"""Zero-shot accuracy of an icon CLIP over the 218 classes of held-out icon families.

    python evaluate.py MODEL [MODEL ...] [--json eval.json]

Every one of the 6,812 embedded pictures is a test picture: none of their 79 families is used in
pretraining.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from mma_adapter.demo import TEMPLATE, load_icon_clip, load_icons


def features(output) -> torch.Tensor:
    """Unit-length features (N, D) of a `get_*_features` output: a tensor, from 5.x on an object."""
    return F.normalize(getattr(output, "pooler_output", output).float(), dim=-1)


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer, template: str = TEMPLATE) -> dict:
    """Accuracy in percent over all 218 classes, and within each topic and style of icon."""
    device = next(model.parameters()).device
    icons = load_icons()
    classnames = sorted({icon.classname for icon in icons})
    prompts = [template.format(name) for name in classnames]
    text = model.get_text_features(
        **tokenizer(prompts, padding=True, return_tensors="pt").to(device)
    )
    processor = load_icon_clip()[2]
    pixels = processor([icon.open() for icon in icons], return_tensors="pt")["pixel_values"]
    images = [features(model.get_image_features(batch.to(device))) for batch in pixels.split(512)]
    predicted = (torch.cat(images) @ features(text).T).argmax(dim=1).tolist()

    hits: dict[str, list[bool]] = defaultdict(list)
    for icon, index in zip(icons, predicted, strict=True):
        correct = classnames[index] == icon.classname
        for group in ("all", f"topic {icon.topic}", f"style {icon.style}"):
            hits[group].append(correct)
    return {
        group: round(100 * sum(values) / len(values), 2) for group, values in sorted(hits.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="+", help="folders of transformers CLIP models with tokenizer"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    report = {}
    for folder in args.models:
        model = CLIPModel.from_pretrained(folder).float().eval()
        report[folder] = zero_shot(model, AutoTokenizer.from_pretrained(folder))
        print(folder, json.dumps(report[folder], indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
