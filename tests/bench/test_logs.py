"""Logs of the authors' code become records, counted exactly, and no missing run goes unnoticed."""

from dataclasses import replace
from pathlib import Path

import pytest

from mma_adapter.bench.logs import read_logs
from mma_adapter.bench.results import ResultsError
from mma_adapter.bench.tables import build_table, results_table

HEAD = """\
***************
** Arguments **
***************
backbone:{space}
config_file: configs/trainers/{trainer}/vit_b16_ep5.yaml
dataset_config_file: configs/datasets/{dataset}.yaml
eval_only: {eval_only}
model_dir: {model_dir}
opts: ['DATASET.NUM_SHOTS', '16', 'DATASET.SUBSAMPLE_CLASSES', '{classes}']
seed: {seed}
trainer: {trainer}
************
** Config **
************
DATASET:
  NAME: Whatever
  NUM_SHOTS: {shots}
  SUBSAMPLE_CLASSES: {classes}
MODEL:
  BACKBONE:
    NAME: ViT-B/16
    PRETRAINED: True
  HEAD:
    NAME:{space}
SEED: {seed}
TRAINER:
  {section}:
    PREC: amp
  NAME: {trainer}
Collecting env info ...
** System info **
PyTorch version: 1.9.0
Loading dataset: Whatever
---------  --------
Dataset    Whatever
# classes  5
# test     4,200
---------  --------
"""

TRAINING = """\
epoch [1/5] batch [5/5] time 0.123 (0.130) data 0.001 (0.010) loss 0.5678 (0.6789) lr 1.5e-03
Evaluate on the *val* set
=> result
* total: 20
* correct: 20
* accuracy: 100.0%
"""

DONE = "Checkpoint saved to adapter_learner/model.pth.tar-5\nFinish training\nDeploy the model\n"


def report(correct: int, total: int = 4200, accuracy: str | None = None) -> str:
    percent = accuracy or f"{100 * correct / total:.1f}"
    return (
        f"Evaluate on the *test* set\n=> result\n* total: {total:,}\n* correct: {correct:,}\n"
        f"* accuracy: {percent}%\n* error: 5.5%\n* macro_f1: 94.5%\nElapsed: 0:00:17\n"
    )


def write(folder: Path, text: str, *, name: str = "log.txt", **changes: object) -> None:
    values: dict = {
        "trainer": "MultiModalAdapter",
        "dataset": "eurosat",
        "classes": "base",
        "eval_only": "False",
        "model_dir": "",
        "shots": 16,
        "seed": folder.name.removeprefix("seed"),
    }
    values |= changes
    folder.mkdir(parents=True, exist_ok=True)
    head = HEAD.format(space=" ", section=values["trainer"].upper(), **values)
    (folder / name).write_text(head + text)


def base_to_novel(root: Path, seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    for seed in seeds:
        tail = f"eurosat/shots_16/MultiModalAdapter/seed{seed}"
        write(root / "base2new/train_base" / tail, TRAINING + DONE + report(3971 + seed))
        evaluated = {"classes": "new", "eval_only": "True", "model_dir": "train_base/seed1"}
        write(root / "base2new/test_new" / tail, report(3000, 3900), **evaluated)


def test_base_and_novel_runs_become_records_with_exact_counts(tmp_path: Path) -> None:
    base_to_novel(tmp_path)
    logs = read_logs(tmp_path)
    assert logs.missing == []
    assert len(logs.results) == 6
    base = [r for r in logs.results if r.role == "base"]
    assert [(r.seed, r.correct, r.total) for r in base] == [
        (1, 3972, 4200),
        (2, 3973, 4200),
        (3, 3974, 4200),
    ]
    first = base[0]
    assert first.accuracy_pct == 100 * 3972 / 4200  # not the printed 94.6
    assert (first.method, first.protocol, first.dataset) == ("mma", "base-to-novel", "eurosat")
    assert (first.shots, first.recipe, first.precision) == (16, "vit_b16_ep5", "amp")
    assert (first.host, first.macro_f1_pct) == ("ViT-B/16 (log.txt)", 94.5)
    novel = [r for r in logs.results if r.role == "novel"]
    assert [r.run_id for r in novel] == [r.run_id for r in base]
    assert len({r.key for r in logs.results}) == 6


def test_old_logs_with_two_decimals_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "seed1", DONE + report(3971, accuracy="94.55"))
    (result,) = read_logs(tmp_path).results
    assert (result.correct, result.accuracy_pct) == (3971, 100 * 3971 / 4200)


def test_the_last_report_wins_within_a_log_and_across_its_continuations(tmp_path: Path) -> None:
    write(tmp_path / "seed1", TRAINING + DONE + report(2000) + report(2100))
    assert [r.correct for r in read_logs(tmp_path).results] == [2100]
    write(tmp_path / "seed1", DONE + report(2200), name="log.txt-2023-03-17-19-28-06")
    assert [r.correct for r in read_logs(tmp_path).results] == [2200]
    write(tmp_path / "seed1", TRAINING, name="log.txt-2023-03-18-00-00-00")
    assert [r.correct for r in read_logs(tmp_path).results] == [2200]


def test_a_log_without_counts_uses_the_printed_accuracy_and_the_size_of_the_test_set(
    tmp_path: Path,
) -> None:
    write(tmp_path / "seed1", DONE + "=> result\n* accuracy: 94.55%\n")
    (result,) = read_logs(tmp_path).results
    assert (result.correct, result.total) == (3971, 4200)


def test_missing_and_broken_seeds_are_reported_not_left_out(tmp_path: Path) -> None:
    base_to_novel(tmp_path)
    new = tmp_path / "base2new/test_new/eurosat/shots_16/MultiModalAdapter"
    (new / "seed2/log.txt").unlink()
    (new / "seed3/log.txt").unlink()
    (new / "seed3").rmdir()
    old = tmp_path / "base2new/train_base/eurosat/shots_16/MultiModalAdapter"
    write(old / "seed1", TRAINING)
    write(old / "seed2", DONE + report(3971, accuracy="12.3"))
    logs = read_logs(tmp_path)
    stem = "eurosat/shots_16/MultiModalAdapter"
    assert {m.path: m.reason for m in logs.missing} == {
        f"base2new/test_new/{stem}/seed2": "there is no log.txt",
        f"base2new/test_new/{stem}/seed3": "there is no such run",
        f"base2new/train_base/{stem}/seed1": "the log ends without a result",
        f"base2new/train_base/{stem}/seed2": "the log prints 12.3 %, but 3971 of 4200 right",
    }
    assert {(r.role, r.seed) for r in logs.results} == {("novel", 1), ("base", 3)}
    scores = [c.score for c in build_table(logs.results, "base-to-novel").rows[0].cells]
    assert [(s.seeds, s.expected_seeds) for s in scores if s] == [(1, 2), (1, 2), (0, 2)]


def test_an_imagenet_run_becomes_the_source_of_the_transfers_made_from_it(tmp_path: Path) -> None:
    stem = "MultiModalAdapter/vit_b16_ep5_16shots"
    write(
        tmp_path / f"imagenet/{stem}/seed1",
        DONE + report(71, 100),
        dataset="imagenet",
        classes="all",
    )
    for dataset in ("dtd", "imagenet_a"):
        write(
            tmp_path / f"evaluation/{stem}/{dataset}/seed1",
            report(45, 100),
            dataset=dataset,
            classes="all",
            eval_only="True",
            model_dir="output/imagenet",
            shots=-1,
        )
    results = read_logs(tmp_path).results
    found = {(r.protocol, r.role, r.dataset): r for r in results}
    assert set(found) == {
        ("cross-dataset", "source", "imagenet"),
        ("cross-dataset", "target", "dtd"),
        ("domain-generalization", "source", "imagenet"),
        ("domain-generalization", "target", "imagenet_a"),
    }
    assert {r.shots for r in results} == {16}
    assert len({r.key for r in results}) == 4
    table = build_table(results, "cross-dataset", paper=True)
    assert [c.score and c.score.mean for c in table.rows[0].cells] == [45, 71, 45]


def test_zero_shot_logs_have_no_seed_folder(tmp_path: Path) -> None:
    zero = {"trainer": "ZeroshotCLIP", "seed": -1, "eval_only": "True", "classes": "new"}
    write(tmp_path / "ZeroshotCLIP/vit_b16/eurosat", report(2500, 3900), **zero)
    (result,) = read_logs(tmp_path).results
    assert (result.method, result.seed, result.role) == ("zero_shot", 1, "novel")
    write(tmp_path / "other", DONE + report(1), seed=-1)
    (missing,) = read_logs(tmp_path).missing
    assert missing.reason == "neither the log nor its folder names the seed"


def test_old_and_own_runs_stand_in_one_table(tmp_path: Path) -> None:
    base_to_novel(tmp_path)
    old = read_logs(tmp_path).results
    own = [replace(r, host="openai/clip-vit-base-patch16", run_id="own" + r.run_id) for r in old]
    text = results_table(own + old, "base-to-novel", paper=True)
    assert "| MMA (openai/clip-vit-base-patch16) | **94.60" in text
    assert "| MMA (ViT-B/16 (log.txt)) | **94.60" in text


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "seed1").mkdir()
    with pytest.raises(ResultsError, match=r"no log\.txt below"):
        read_logs(tmp_path)
