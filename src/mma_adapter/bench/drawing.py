"""The look all pictures share: panels, colours, and a legend that covers nothing."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = "osD^vP*X"


def grid(
    count: int, *, width: float = 3.6, height: float = 3.0, columns: int = 3
) -> tuple["Figure", list[Any]]:
    """Return a figure without a display, and `count` panels of `width` x `height` inches."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes[count:]:
        place.remove()
    for place in axes[:count]:
        place.grid(color="#E5E5E5", linewidth=0.6)
        place.set_axisbelow(True)
        place.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def legend_below(figure: "Figure", *axes: "Axes") -> None:
    """Put one legend for all panels below them, where it covers nothing."""
    entries: dict[str, Any] = {}
    for place in axes:
        # What has error bars comes first: the measured things, then lines and points of reference.
        handles = sorted(
            zip(*place.get_legend_handles_labels(), strict=True),
            key=lambda pair: not hasattr(pair[0], "has_xerr"),
        )
        entries.update({label: handle for handle, label in handles})
    columns = min(len(entries), 2 if len(axes) == 1 and figure.get_figwidth() < 8 else 4)
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=9
    )


def color_of(index: int) -> str:
    """Return the colour of the method at a place of the list."""
    return COLORS[index % len(COLORS)]


def marker_of(index: int) -> str:
    """Return the marker of the method at a place of the list."""
    return MARKERS[index % len(MARKERS)]
