"""The embedded material: a small real CLIP, and 6,812 real icons it never saw in pretraining.

`tiny-icon-clip` is a `transformers.CLIPModel` of 12 + 12 layers and width 128, trained from scratch
on openly licensed icons (see `examples/pretrain_icon_clip`). `icons.parquet` holds 48 x 48 pictures
of 218 classes from icon families that pretraining left out; their authors and licences are in
`ATTRIBUTION.md` beside it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    from PIL import Image
    from transformers import BaseImageProcessor, CLIPModel, PreTrainedTokenizerBase

TEMPLATE = "an icon of a {}."
"""The prompt template the pretraining captions used most like a sentence."""


@dataclass(frozen=True, slots=True)
class Icon:
    """One icon picture.

    Attributes:
        png: The picture, 48 x 48, RGB on white, as PNG bytes.
        classname: What it shows, such as `"alarm clock"`.
        topic: Group of classes: `"objects"`, `"nature"`, `"interface"`, ...
        style: How it is drawn: `"line"`, `"solid"`, `"color"`, `"emoji"`, `"pixel"` or
            `"hand-drawn"`.
        family: Icon family (Iconify prefix) it comes from.
        icon: Its name within the family.
        license: SPDX identifier of the family's licence.
    """

    png: bytes = field(repr=False)
    classname: str
    topic: str
    style: str
    family: str
    icon: str
    license: str

    @property
    def key(self) -> str:
        """Family and name with a colon between them; unique among the icons."""
        return f"{self.family}:{self.icon}"

    def open(self) -> Image.Image:
        """Decode the picture: an RGB `PIL.Image` of 48 x 48 pixels."""
        from PIL import Image

        return Image.open(io.BytesIO(self.png)).convert("RGB")


def data_path(name: str) -> Path:
    """Path of one embedded file or folder.

    Raises:
        DataError: The package's files are not on disk (run from inside a zip archive).
    """
    # The models' loaders need a real folder, and `as_file` cannot hand one out that outlives its
    # context; every ordinary installation unpacks packages to disk anyway.
    path = Path(str(resources.files("mma_adapter.demo") / "data" / name))
    if not path.exists():
        raise DataError(
            f"the demo's {name} is not at {path}; install mma-adapter unpacked "
            "(pip install mma-adapter), not inside a zip archive"
        )
    return path


def icon_clip_path() -> Path:
    """Folder of the embedded CLIP, fit for `CLIPModel.from_pretrained`."""
    return data_path("tiny-icon-clip")


def load_icon_clip() -> tuple[CLIPModel, PreTrainedTokenizerBase, BaseImageProcessor]:
    """The embedded CLIP with its tokenizer and image processor.

    Returns:
        The model (float32, evaluation mode, on the CPU), its tokenizer (24 tokens at most) and its
        image processor (40 x 40 pixels; the PIL one, so that torchvision is neither needed nor
        used).
    """
    import transformers

    path = str(icon_clip_path())
    model = transformers.CLIPModel.from_pretrained(path).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    # transformers 5 renamed the PIL processor; CLIPImageProcessor there is the torchvision one.
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else None
    processor_class = getattr(transformers, name or "CLIPImageProcessor")
    return model, tokenizer, processor_class.from_pretrained(path)


@lru_cache(maxsize=1)
def load_icons() -> tuple[Icon, ...]:
    """All 6,812 icon pictures, in the order of the file (classes in alphabetical order)."""
    import pyarrow.parquet as parquet

    columns = ("classname", "topic", "style", "family", "icon", "license")
    table = parquet.read_table(data_path("icons.parquet"))
    pictures = (image["bytes"] for image in table.column("image").to_pylist())
    rows = zip(pictures, *(table.column(name).to_pylist() for name in columns), strict=True)
    return tuple(Icon(*row) for row in rows)
