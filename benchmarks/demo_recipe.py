"""Find the demo's recipe without its test pictures.

    python benchmarks/demo_recipe.py

Of the 30 base classes 10 are held out as novel ones, the first and the last 10 in turn; the other
20 are trained on with their 16 training pictures. Scored are, among the 20, their validation icons
in three photographs each that training never saw, and among the 10, all their training and
validation pictures. Settings differ from the centre in one thing at a time; then the best of each
are combined, and of the combination one thing at a time is put back. Writes
`results/demo_recipe.json`; what stands in it is not measured again, so remove it when the embedded
CLIP has changed.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from machine import RESULTS, describe_machine, write

from mma_adapter.data.samples import Sample
from mma_adapter.demo import photographed_objects
from mma_adapter.demo.run import DemoRecipe, IconClip, Task
from mma_adapter.metrics import harmonic_mean

CENTRE = DemoRecipe(start_layer=5, scale=0.05, lr=0.01, epochs=10, crop_scale=(0.4, 1.0))
ONE_AT_A_TIME = {
    "scale": [0.01, 0.1, 0.2],
    "lr": [0.005, 0.02],
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


def search(run: Callable[[DemoRecipe], float]) -> None:
    """Call `run` with one recipe after the other, led by the harmonic means it returns."""
    centre, best = run(CENTRE), {}
    for name, values in ONE_AT_A_TIME.items():
        score, value = max((run(replace(CENTRE, **{name: value})), value) for value in values)
        if score > centre:
            best[name] = value
    combined = replace(CENTRE, **best)
    run(combined)
    for name in best:
        run(replace(combined, **{name: getattr(CENTRE, name)}))


def main() -> None:
    clip, file = IconClip(), RESULTS / "demo_recipe.json"
    payload: dict = json.loads(file.read_text()) if file.exists() else {"settings": []}
    rows = payload["settings"]
    zero_shot = payload.get("zero_shot") or measure(clip, None)

    def run(recipe: DemoRecipe) -> float:
        settings = json.loads(json.dumps(asdict(recipe)))
        known = [row for row in rows if row["recipe"] == settings]
        if not known:
            known = [{"recipe": settings, **measure(clip, recipe)}]
            rows.extend(known)
            print(known[0], flush=True)
        return known[0]["harmonic_mean_pct"]

    search(run)
    payload = {
        **describe_machine("cpu"),
        "command": "python benchmarks/demo_recipe.py",
        "zero_shot": zero_shot,
        "settings": rows,
        "best": max(rows, key=lambda row: row["harmonic_mean_pct"])["recipe"],
    }
    print(write("demo_recipe", payload))


if __name__ == "__main__":
    main()
