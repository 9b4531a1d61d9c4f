"""Images per second with the adapter on, off, removed, and baked (PyTorch and ONNX).

    python benchmarks/inference.py --sizes vit-b-16 --batch 64

All ways are timed in one process, in turn. Writes `results/inference_<device>.json`.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
from machine import RESULTS, alternate, describe_machine, summary, write
from paths import RandomNames, random_clip

from mma_adapter import FewShotClassifier, bake, disable_mma, inject_mma
from mma_adapter.baking import export_onnx


def ways(size: str, pixels: torch.Tensor, classes: int, onnx: bool) -> dict:
    """Return a function per way of classifying `pixels`."""
    stock = random_clip(size).to(pixels.device)
    adapted = inject_mma(copy.deepcopy(stock), start_layer=5, seed=0)
    names = [f"class {i}" for i in range(classes)]
    on = FewShotClassifier(adapted, RandomNames(), names)
    removed = FewShotClassifier(stock, RandomNames(), names)
    with torch.no_grad():
        baked = bake(on)

    def off():
        with disable_mma(adapted):
            return on(pixels)

    found = {
        "adapter on": lambda: on(pixels),
        "adapter disabled": off,
        "no adapter": lambda: removed(pixels),
        "no adapter, stock image tower": lambda: stock.get_image_features(pixel_values=pixels),
        "baked": lambda: baked(pixels),
    }
    if onnx:
        import onnxruntime

        folder = tempfile.mkdtemp()
        export_onnx(baked, Path(folder) / "model.onnx", pixels[:2])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options)
        array = pixels.cpu().numpy()
        found["baked, ONNX Runtime"] = lambda: session.run(None, {"pixel_values": array})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["vit-b-16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    path = RESULTS / f"inference_{args.device}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    command = "python benchmarks/inference.py " + " ".join(sys.argv[1:])
    for size in args.sizes:
        pixels = torch.randn(args.batch, 3, 224, 224, device=args.device)
        with torch.inference_mode():
            runs = ways(size, pixels, args.classes, onnx=args.device == "cpu" and not args.no_onnx)
            seconds = alternate(runs, args.repeats, args.device)
        row = {"size": size, "batch": args.batch, "classes": args.classes, "command": command}
        row["paths"] = {
            name: {**summary(s), "images_per_second": args.batch / summary(s)["seconds"]}
            for name, s in seconds.items()
        }
        rows = [r for r in rows if (r["size"], r["batch"]) != (size, args.batch)] + [row]
        write(path.stem, {**describe_machine(args.device), "rows": rows})
        print(json.dumps(row), file=sys.stderr)


if __name__ == "__main__":
    main()
