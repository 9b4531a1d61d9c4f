"""A small real CLIP and real icon pictures inside the package, so that everything runs offline."""

from .icons import TEMPLATE, Icon, icon_clip_path, load_icon_clip, load_icons
from .photograph import MILD, SHIFTS, STRONG, Shift, Strength, photograph
from .splits import export_folder, icon_dataset, photographed_objects, topics

__all__ = [
    "MILD",
    "SHIFTS",
    "STRONG",
    "TEMPLATE",
    "Icon",
    "Shift",
    "Strength",
    "export_folder",
    "icon_clip_path",
    "icon_dataset",
    "load_icon_clip",
    "load_icons",
    "photograph",
    "photographed_objects",
    "topics",
]
