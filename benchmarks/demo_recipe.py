"""Find the demo's recipe without its test pictures.

    python benchmarks/demo_recipe.py

Of the 30 base classes 10 are held out as novel ones, the first and the last 10 in turn; the other
20 are trained on with their 16 training pictures. Scored are, among the 20, their validation icons
in three photographs each that training never saw, and among the 10, all their training and
validation pictures. Settings differ from the centre in one thing at a time; then the best of each
are combined. Writes `results/demo_recipe.json`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace

from machine import describe_machine, write

from mma_adapter.data.samples import Sample
from mma_adapter.demo import photographed_objects
from mma_adapter.demo.run import DemoRecipe, IconClip, Task
from mma_adapter.metrics import harmonic_mean

CENTRE = DemoRecipe(start_layer=5, scale=0.05, lr=0.01, epochs=10, crop_scale=(0.4, 1.0))
ONE_AT_A_TIME = {
    "scale": [0.01, 0.2],
    "lr": [0.0015, 0.005, 0.02],
    "epochs": [5, 20],
    "start_layer": [1, 9],
    "crop_scale": [(0.08, 1.0)],
}
PHOTOGRAPHS = (0, 1, 2)
HELD_OUT = (range(20, 30), range(10))


def renumbered(samples: Sequence[Sample], labels: Sequence[int]) -> list[Sample]:
    """Return the samples of these labels, numbered from 0 in the order given."""
    number = {label: new for new, label in enumerate(labels)}
    return [replace(s, label=number[s.label]) for s in samples if s.label in number]


def make_tasks(held_out: Sequence[int]) -> tuple[Task, Task]:
    """Return the classes to train on and the held-out ones, without any test picture."""
    datasets = [photographed_objects("strong", classes="base", seed=s) for s in PHOTOGRAPHS]
    data = datasets[0]
    kept = [label for label in range(data.num_classes) if label not in held_out]
    names = data.classnames
    base = Task(
        renumbered(data.train, kept),
        [sample for each in datasets for sample in renumbered(each.val, kept)],
        [names[label] for label in kept],
    )
    unseen = [*data.train, *data.val]
    novel = Task([], renumbered(unseen, held_out), [names[label] for label in held_out])
    return base, novel


def measure(clip: IconClip, recipe: DemoRecipe | None) -> dict[str, float]:
    """Train and score on both divisions; None is the CLIP alone."""
    base_pct, novel_pct, seconds = [], [], []
    for held_out in HELD_OUT:
        base, novel = make_tasks(held_out)
        if recipe is not None:
            seconds.append(clip.adapt(recipe, base, seed=1).seconds)
        halves = clip.score(base, novel)
        base_pct.append(halves.base.accuracy_pct)
        novel_pct.append(halves.novel.accuracy_pct)
    means = statistics.mean(base_pct), statistics.mean(novel_pct)
    return {
        "base_pct": round(means[0], 2),
        "novel_pct": round(means[1], 2),
        "harmonic_mean_pct": round(harmonic_mean(*means), 2),
        "training_seconds": round(sum(seconds), 1),
    }


def main() -> None:
    clip = IconClip()
    rows: list[dict] = [{"recipe": None, **measure(clip, None)}]
    print(rows[0], flush=True)

    def run(recipe: DemoRecipe) -> float:
        if all(row["recipe"] != asdict(recipe) for row in rows):
            rows.append({"recipe": asdict(recipe), **measure(clip, recipe)})
            print(rows[-1], flush=True)
        (row,) = (row for row in rows if row["recipe"] == asdict(recipe))
        return row["harmonic_mean_pct"]

    centre, best = run(CENTRE), {}
    for name, values in ONE_AT_A_TIME.items():
        score, value = max((run(replace(CENTRE, **{name: value})), value) for value in values)
        if score > centre:
            best[name] = value
    run(replace(CENTRE, **best))
    chosen = max(rows[1:], key=lambda row: row["harmonic_mean_pct"])
    payload = {
        **describe_machine("cpu"),
        "command": "python benchmarks/demo_recipe.py",
        "zero_shot": rows[0],
        "settings": rows[1:],
        "best": chosen["recipe"],
    }
    print(write("demo_recipe", payload))


if __name__ == "__main__":
    main()
