"""Results of the authors' code, read from its `log.txt` files into the same records.

Source: the logger and evaluator of Dassl, and CoOp's log parser `parse_test_res.py`: after the
line `Finish training` (or `=> result` where nothing was trained) the last accuracy counts. Three
things differ on purpose. Accuracy is recovered from the printed counts, because Dassl 0.6.2 and
later print one decimal only (older ones two). A run without a result is reported, not left out.
And a log continued in `log.txt-<date>`, which Dassl writes when `log.txt` is there already, is
read too.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..data.catalog import DATASETS
from .results import Protocol, Result, ResultsError, Role

METHODS_BY_TRAINER = {
    "MultiModalAdapter": "mma",
    "MultiModalAdapterPP": "mma_pp",
    "ZeroshotCLIP": "zero_shot",
    "ZeroshotCLIP2": "zero_shot_ensemble",
    "CoOp": "coop",
    "CoCoOp": "cocoop",
    "KgCoOp": "kgcoop",
    "MaPLe": "maple",
    "PromptSRC": "promptsrc",
    "LASP": "lasp",
    "RPO": "rpo",
    "MMRL": "mmrl",
}

DOMAIN_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")

_SETTING = re.compile(r"^( *)(\w+):(?: (.*?))?\s*$")
_FIGURE = re.compile(r"^\* (total|correct|accuracy|macro_f1): ([\d.,]+)%?\s*$")
_TEST_SIZE = re.compile(r"^# test\s+([\d,]+)\s*$")
_SEED = re.compile(r"seed(\d+)")
_SHOTS = re.compile(r"(?:^|_)(?:shots_(\d+)|(\d+)shots)(?:$|_)")


@dataclass(frozen=True)
class MissingLog:
    """A run that should have a result and has none.

    Args:
        path: Its folder, below the folder that was read.
        reason: Why there is no result.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Logs:
    """What `read_logs` found: records, and runs without a result."""

    results: list[Result]
    missing: list[MissingLog]


@dataclass
class _Run:
    """What one log says."""

    settings: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    decimals: int = 0
    test_size: int | None = None

    def setting(self, name: str, default: str = "") -> str:
        return self.settings.get(name) or default


def read_logs(root: Path | str) -> Logs:
    """Read all logs below a folder, such as the `output/` of the authors' scripts.

    The seeds that any run has are expected of every run; a folder that lacks one is reported.

    Args:
        root: Folder with logs in subfolders `seed1`, `seed2`, ...

    Raises:
        ResultsError: There is no log in the folder.
    """
    root = Path(root)
    logged = {path.parent for path in root.rglob("log.txt*") if path.is_file()}
    if not logged:
        raise ResultsError(f"there is no log.txt below {root}; pass the output folder of the runs")
    seeded = {p for p in root.rglob("seed*") if p.is_dir() and _SEED.fullmatch(p.name)}
    folders = sorted(logged | seeded)
    results: list[Result] = []
    missing: list[MissingLog] = []
    for folder in folders:
        name = folder.relative_to(root).as_posix()
        try:
            results.append(_record(_parse(folder), folder, name))
        except ResultsError as error:
            missing.append(MissingLog(name, str(error)))
    return Logs(_with_sources(results), [*missing, *_absent_seeds(seeded, root)])


def _absent_seeds(folders: set[Path], root: Path) -> Iterator[MissingLog]:
    seeds = {folder.name for folder in folders}
    for parent in sorted({folder.parent for folder in folders}):
        for seed in sorted(seeds - {f.name for f in folders if f.parent == parent}):
            yield MissingLog((parent / seed).relative_to(root).as_posix(), "there is no such run")


def _parse(folder: Path) -> _Run:
    run = _Run()
    # By name, `log.txt` comes first and the dated ones follow in order of time.
    paths = sorted(folder.glob("log.txt*"))
    if not paths:
        raise ResultsError("there is no log.txt")
    for path in paths:
        _parse_file(path.read_text("utf-8", errors="replace"), run)
    if "accuracy" not in run.figures:
        raise ResultsError("the log ends without a result")
    return run


def _parse_file(text: str, run: _Run) -> None:
    lines = text.splitlines()
    # A training that broke off may hold results on val; they are not what is looked for.
    trained = any(line.startswith(("epoch [", "Finish training")) for line in lines)
    end = "Finish training" if trained else "=> result"
    finished, sections = False, list[str]()
    for line in lines:
        finished = finished or line == end
        if finished and line == "=> result":
            run.figures.clear()  # a new report: nothing of an older one may mix with it
        elif finished and (found := _FIGURE.match(line)):
            run.figures[found[1]] = float(found[2].replace(",", ""))
            if found[1] == "accuracy":
                run.decimals = len(found[2].partition(".")[2])
        elif size := _TEST_SIZE.match(line):
            run.test_size = int(size[1].replace(",", ""))
        elif not finished and (setting := _SETTING.match(line)):
            # The config is nested by two spaces: MODEL, BACKBONE, NAME.
            sections = [*sections[: len(setting[1]) // 2], setting[2]]
            run.settings.setdefault(".".join(sections), setting[3] or "")


def _record(run: _Run, folder: Path, name: str) -> Result:
    trainer = run.setting("trainer") or run.setting("TRAINER.NAME")
    if not trainer:
        raise ResultsError("the log does not name the trainer")
    config = run.setting("dataset_config_file")
    dataset = Path(config).stem if config else _dataset_in_path(folder)
    recipe = Path(run.setting("config_file")).stem
    correct, total = _counts(run)
    seed, shots = _seed(run, folder, trainer), _shots(run, folder)
    protocol, role = _place(run, dataset)
    # The scores of one trained adapter, on base and novel classes or on all targets, are one run.
    identity = (trainer, recipe, "" if role == "target" else dataset, seed, shots, protocol)
    return Result(
        run_id="log-" + hashlib.sha256(repr(identity).encode()).hexdigest()[:12],
        method=METHODS_BY_TRAINER.get(trainer, trainer),
        recipe=recipe,
        protocol=protocol,
        role=role,
        dataset=dataset,
        source="imagenet" if role == "target" else dataset,
        split_origin="published",
        seed=seed,
        shots=shots,
        host=f"{run.setting('MODEL.BACKBONE.NAME', 'CLIP')} (log.txt)",
        correct=correct,
        total=total,
        accuracy_pct=100 * correct / total,
        macro_f1_pct=run.figures.get("macro_f1"),
        precision=run.setting(f"TRAINER.{trainer.upper()}.PREC", "unknown"),
        machine=name,
    )


def _seed(run: _Run, folder: Path, trainer: str) -> int:
    if match := _SEED.fullmatch(folder.name):
        return int(match[1])
    if (asked := int(run.setting("seed", "-1"))) > 0:
        return asked
    if trainer.startswith("Zeroshot"):  # draws nothing, and its script sets no seed
        return 1
    raise ResultsError("neither the log nor its folder names the seed")


def _counts(run: _Run) -> tuple[int, int]:
    """Return right predictions and test pictures, checked against the printed accuracy."""
    printed = run.figures["accuracy"]
    total = int(run.figures.get("total", run.test_size or 0))
    if not total:
        raise ResultsError("the log prints an accuracy, but not of how many pictures")
    correct = int(run.figures.get("correct", round(total * printed / 100)))
    if abs(100 * correct / total - printed) > 0.5 * 10.0**-run.decimals + 1e-9:
        raise ResultsError(f"the log prints {printed} %, but {correct} of {total} right")
    return correct, total


def _place(run: _Run, dataset: str) -> tuple[Protocol, Role]:
    classes = run.setting("DATASET.SUBSAMPLE_CLASSES", "all")
    if classes == "base":
        return "base-to-novel", "base"
    if classes == "new":
        return "base-to-novel", "novel"
    if dataset in DOMAIN_VARIANTS:
        return "domain-generalization", "target"
    if run.setting("eval_only") == "True" and run.setting("model_dir"):
        # ImageNet is the only source in these scripts.
        return "cross-dataset", "source" if dataset == "imagenet" else "target"
    return "few-shot", "all"


def _shots(run: _Run, folder: Path) -> int:
    asked = int(run.setting("DATASET.NUM_SHOTS", "-1"))
    found = [match for part in folder.parts if (match := _SHOTS.search(part))]
    # Evaluation alone needs no shots, so those of the training stand in the path only.
    return asked if asked > 0 or not found else int(found[-1][1] or found[-1][2])


def _dataset_in_path(folder: Path) -> str:
    names = [part for part in folder.parts if part in DATASETS]
    if not names:
        raise ResultsError("neither the log nor its path names the data set")
    return names[-1]


def _with_sources(results: list[Result]) -> list[Result]:
    """Make training on all of ImageNet the source of the transfers made from it."""
    used: dict[str, list[Protocol]] = {}
    for result in results:
        if result.role == "target" and result.protocol not in used.setdefault(result.method, []):
            used[result.method].append(result.protocol)
    placed: list[Result] = []
    for result in results:
        protocols = used.get(result.method, [])
        if result.dataset != "imagenet" or result.role != "all" or not protocols:
            placed.append(result)
            continue
        for protocol in protocols:
            identity = f"{result.run_id}-{protocol}"
            placed.append(replace(result, run_id=identity, protocol=protocol, role="source"))
    return placed
