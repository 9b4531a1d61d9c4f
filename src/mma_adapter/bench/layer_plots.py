"""Curves of a layer analysis: discriminability, transferability and modality gap over depth."""

from typing import TYPE_CHECKING

from ..analysis import LayerAnalysis
from .drawing import color_of, grid, legend_below, marker_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("class_accuracy_pct", "Linear probe for classes", "Accuracy (%)"),
    ("dataset_accuracy_pct", "Linear probe for the data set (unseen classes)", "Accuracy (%)"),
    ("transfer_accuracy_pct", "Classes from another set's scores", "Accuracy (%)"),
)


def layer_curves(analysis: LayerAnalysis) -> "Figure":
    """Draw the curves of both towers over their layers, and the suggested first layer to adapt.

    With one data set there is neither a data set probe nor transfer, and no panel for them.
    """
    several = len(analysis.datasets) > 1
    panels = _PANELS if several else _PANELS[:1]
    figure, axes = grid(len(panels) + 1, columns=2, width=4.2)
    depth = len(analysis.modality_gap)
    for place, (field, title, unit) in zip(axes, panels, strict=False):
        for index, (tower, layers) in enumerate(analysis.towers.items()):
            numbers = [layer.layer for layer in layers]
            values = [getattr(layer, field) for layer in layers]
            style = {"color": color_of(index), "marker": marker_of(index)}
            place.plot(numbers, values, markersize=4, label=f"{tower} tower", **style)
            # Where towers differ in depth, the suggestion counts on the shallower one.
            first = len(layers) - depth + analysis.start_layer
            shown = "suggested start_layer" if len(layers) == depth else f"the same, {tower}"
            place.axvline(first, color="#888888", linestyle=":", label=shown)
        by_dataset = field == "dataset_accuracy_pct"
        chance = analysis.dataset_chance_pct if by_dataset else analysis.class_chance_pct
        place.axhline(chance, color="#888888", linestyle="--", linewidth=1, label="chance")
        place.set_ylim(0, 103)
        place.set_title(title, fontsize=10)
        place.set_ylabel(unit)
    gap = axes[-1]
    gap.plot(range(1, depth + 1), analysis.modality_gap, color="black", marker="D", markersize=4)
    gap.axvline(analysis.start_layer, color="#888888", linestyle=":")
    gap.set_ylim(0, max(analysis.modality_gap) * 1.08)
    gap.set_title("Modality gap", fontsize=10)
    gap.set_ylabel("Distance of the means")
    for place in axes:
        place.set_xlabel("Layer")
        place.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, *axes)
    return figure
