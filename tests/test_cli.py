"""The real commands on small folders of the embedded pictures, offline."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from safetensors.torch import load, load_file
from typer.testing import CliRunner

from mma_adapter import MultiModalAdapter
from mma_adapter.checkpoints import latest_checkpoint
from mma_adapter.cli import app, join_lists
from mma_adapter.demo import export_folder

COMMANDS = shlex.split(
    "train evaluate predict info push convert demo bench table plot analyze data"
)
CLASSES = ("anchor", "bell", "book", "umbrella")
TRAIN = ["--model", "demo", "--template", "an icon of a {}."]
TRAIN += ["--shots", "4", "--epochs", "1", "--scale", "0.2", "--lr", "0.02"]
WEIGHTS = "adapter_model.safetensors"


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def process(*args, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "mma_adapter", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of four classes of photographed icons."""
    everything = tmp_path_factory.mktemp("all") / "icons"
    export_folder(everything)
    folder = tmp_path_factory.mktemp("some") / "photos"
    for name in CLASSES:
        shutil.copytree(everything / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """An adapter trained by the command, and what the command printed."""
    out = tmp_path_factory.mktemp("trained") / "out"
    result = run("train", photos, *TRAIN, "-o", out)
    assert result.exit_code == 0, result.stderr
    return out, result


# Help and exit codes


def test_help_lists_every_command_without_importing_torch():
    code = (
        "import sys; from mma_adapter.cli import app\n"
        "try: app(['--help'], prog_name='mma-adapter')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'matplotlib', 'datasets'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", done.stdout), command


def leaves(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    "path", [path for path, _ in leaves(typer.main.get_command(app))], ids=" ".join
)
def test_every_command_shows_an_example_of_itself_and_explains_every_option(path):
    command = dict(leaves(typer.main.get_command(app)))[path]
    assert f"mma-adapter {' '.join(path)} " in command.epilog
    assert all(parameter.help for parameter in command.params)
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout


@pytest.mark.parametrize(
    "args",
    [["train"], ["nonsense"], ["demo", "--seeds", "x"], ["bench", "few", "--demo", "-o", "r"]],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(args):
    assert run(*args).exit_code == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "nowhere/at/all"], "nowhere/at/all"),
        (["train", "missing/", "--model", "demo", "-o", "unused"], "neither a folder nor"),
        (["table", "missing.jsonl"], "missing.jsonl"),
        (["convert", "missing.pth", "out"], "pass --scale"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_error_is_a_message_on_stderr_and_exit_code_1(args, message):
    result = run(*args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mma-adapter: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_lists_may_be_written_with_spaces():
    written = shlex.split("bench few-shot --seeds 1 2 3 -o runs --methods zero_shot mma --demo")
    joined = shlex.split("bench few-shot --seeds 1,2,3 -o runs --methods zero_shot,mma --demo")
    early = ["bench", "--seeds", "1", "few-shot"]
    assert join_lists(written) == joined
    assert join_lists(joined) == joined
    assert join_lists(early) == early
    assert join_lists(["predict", "out", "1", "2"]) == ["predict", "out", "1", "2"]


# train


def test_train_says_zero_shot_first_and_prints_the_comparison_alone_to_stdout(trained):
    out, result = trained
    zero_shot, epoch = result.stderr.index("zero-shot accuracy"), result.stderr.index("epoch 1")
    assert zero_shot < epoch < result.stderr.index(f"mma-adapter predict {out}")
    assert "zero-shot" in result.stdout
    assert "adapted" in result.stdout
    assert "umbrella" in result.stdout
    assert "epoch" not in result.stdout
    assert not (out / "checkpoints").exists()


def test_train_leaves_adapter_card_and_report_that_agree(trained):
    out, _ = trained
    assert {path.name for path in out.iterdir()} == {
        *("adapter_config.json", WEIGHTS, "README.md", "report"),
    }
    metrics = json.loads((out / "report" / "metrics.json").read_text())
    card = (out / "README.md").read_text()
    assert f"{metrics['adapted']['accuracy_pct']:.2f} %" in card
    assert f"{metrics['zero_shot']['accuracy_pct']:.2f} %" in card
    assert str(out.parent) not in card
    assert metrics["training_pictures"] == 16
    assert len(metrics["losses"]) == 1
    config = MultiModalAdapter.from_pretrained(out).config
    assert config.classnames == CLASSES
    assert config.template == "an icon of a {}."
    assert (config.scale, config.start_layer) == (0.2, 5)
    assert {p.name for p in (out / "report").iterdir()} == {
        *("index.html", "metrics.json", "confusion.png", "per_class.png"),
    }


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_to_the_weights_of_an_uninterrupted_one(photos, tmp_path):
    # 40 pictures in batches of 2: enough steps for the signal to arrive in the middle.
    base = ["train", photos, *TRAIN, "--shots", "10", "--batch-size", "2", "--epochs", "4"]
    with process(*base, "-o", tmp_path / "whole") as whole:
        whole.communicate()
    assert whole.returncode == 0

    broken = tmp_path / "broken"
    with process(*base, "-o", broken) as first:
        assert first.stderr
        for line in first.stderr:
            if line.startswith("epoch 2"):
                first.send_signal(signal.SIGINT)
                break
        message = first.stderr.read()
        assert first.stdout
        assert first.stdout.read() == ""
    assert first.returncode == 130
    assert "--resume" in message
    assert "Traceback" not in message
    assert latest_checkpoint(broken / "checkpoints") is not None
    assert not (broken / WEIGHTS).exists()

    again = run(*base, "-o", broken)
    assert again.exit_code == 1
    assert "--resume" in again.stderr
    with process(*base, "-o", broken, "--resume") as second:
        _, message = second.communicate()
    assert second.returncode == 0, message
    assert "going on after step" in message
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("broken", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)


def test_an_unreadable_picture_stops_training_by_name_or_is_left_out(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    # All pictures of one class but two, so that a broken one is surely drawn.
    for picture in sorted((folder / "bell").iterdir())[2:]:
        picture.write_bytes(b"not a picture")
    shots = [*TRAIN, "--shots", "-1"]
    stopped = run("train", folder, *shots, "-o", tmp_path / "out")
    assert stopped.exit_code == 1
    assert f"{folder / 'bell'}" in stopped.stderr
    assert "--skip-bad" in stopped.stderr
    assert not (tmp_path / "out" / WEIGHTS).exists()

    skipped = run("train", folder, *shots, "--skip-bad", "-o", tmp_path / "out")
    assert skipped.exit_code == 0, skipped.stderr
    metrics = json.loads((tmp_path / "out" / "report" / "metrics.json").read_text())
    named = metrics["skipped_pictures"]
    assert named
    assert all(f"left out {path}" in skipped.stderr for path in named)
    assert f"{len(named)} unreadable" in skipped.stderr


def test_class_names_can_come_from_a_file(photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("umbrella rain umbrella\nanchor ship's anchor\nbell door bell\nbook novel\n")
    result = run(
        *("evaluate", train_once(photos, tmp_path / "out", names), photos),
        *("--classnames", names, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    found = [row["classname"] for row in json.loads(result.stdout)["classes"]]
    assert found == ["ship's anchor", "door bell", "novel", "rain umbrella"]


def train_once(photos, out, names):
    result = run("train", photos, *TRAIN, "--classnames", names, "-o", out)
    assert result.exit_code == 0, result.stderr
    return out


# evaluate, predict, info


def test_evaluate_gives_the_figures_of_the_training_report(trained, photos):
    out, _ = trained
    result = run("evaluate", out, photos, "--json")
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((out / "report" / "metrics.json").read_text())
    found = json.loads(result.stdout)
    assert found["zero_shot"] == metrics["zero_shot"]
    assert found["adapted"] == metrics["adapted"]
    assert found["classes"] == metrics["classes"]


def test_evaluate_scores_all_pictures_on_request(trained, photos):
    result = run("evaluate", trained[0], photos, "--all")
    count = sum(1 for path in photos.rglob("*.png"))
    assert f"{count} pictures of 4 classes" in result.stdout


def test_predict_gives_the_same_answers_in_all_formats(trained, photos):
    given = (trained[0], photos / "bell", photos / "bo*" / "*.png")
    as_json = run("predict", *given, "--json", "--top", "4")
    as_csv = run("predict", *given, "--csv", "--top", "4")
    assert (as_json.exit_code, as_csv.exit_code) == (0, 0), as_json.stderr
    predictions = json.loads(as_json.stdout)
    expected = [*sorted((photos / "bell").iterdir()), *sorted((photos / "book").iterdir())]
    assert [Path(p["picture"]) for p in predictions] == expected
    for prediction in predictions:
        values = [p["probability"] for p in prediction["predictions"]]
        assert sum(values) == pytest.approx(1)
        assert values == sorted(values, reverse=True)
        assert {p["classname"] for p in prediction["predictions"]} == set(CLASSES)
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    flat = [(p["picture"], q["classname"]) for p in predictions for q in p["predictions"]]
    assert [(row["picture"], row["classname"]) for row in rows] == flat
    table = run("predict", trained[0], expected[0])
    assert f"{predictions[0]['predictions'][0]['classname']} " in table.stdout


def test_predict_names_unreadable_pictures_and_exits_with_1(trained, photos, tmp_path):
    bad, good = tmp_path / "bad.png", next((photos / "bell").iterdir())
    bad.write_bytes(b"not a picture")
    result = run("predict", trained[0], bad, good, "--json")
    assert result.exit_code == 1
    assert [p["picture"] for p in json.loads(result.stdout)] == [str(good)]
    assert f"cannot read {bad}" in result.stderr
    nothing = run("predict", trained[0], tmp_path / "no*.png")
    assert nothing.exit_code == 1
    assert "no*.png is no file, folder or fitting pattern" in nothing.stderr


def test_predict_takes_other_classes_from_a_file(trained, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("bell\nkey\n")
    result = run(
        *("predict", trained[0], photos / "bell", "--json", "--top", "9", "--classnames", names)
    )
    found = {p["classname"] for row in json.loads(result.stdout) for p in row["predictions"]}
    assert found == {"bell", "key"}


def test_info_needs_no_base_model(trained, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained[0], folder)
    text = (folder / "adapter_config.json").read_text()
    changed = re.sub(r'("base_model_name_or_path": )".*?"', r'\1"gone/model"', text)
    (folder / "adapter_config.json").write_text(changed)
    shown, found = run("info", folder), run("info", folder, "--json")
    assert shown.exit_code == found.exit_code == 0, shown.stderr
    facts = json.loads(found.stdout)
    assert facts["num_weights"] == 142_080
    assert facts["base_model_name_or_path"] == "gone/model"
    assert facts["file_bytes"][WEIGHTS] == (folder / WEIGHTS).stat().st_size
    for text in ("142,080", "gone/model", "an icon of a {}.", "4: anchor, bell, book, umbrella"):
        assert text in shown.stdout
    assert run("predict", folder, "x.png", "--model", "demo").exit_code == 1  # there is no x.png


# convert, push


def test_convert_there_and_back_keeps_every_weight(trained, tmp_path):
    checkpoint, back = tmp_path / "model.pth.tar-5", tmp_path / "back"
    out = run("convert", trained[0], checkpoint)
    assert out.stdout.strip() == str(checkpoint)
    assert "ADAPTER_SCALE 0.2" in out.stderr
    assert run("convert", checkpoint, back).exit_code == 1
    assert run("convert", trained[0], checkpoint, "--scale", "1").exit_code == 1
    assert run("convert", checkpoint, back, "--scale", "0.2").exit_code == 0
    ours, theirs = load_file(trained[0] / WEIGHTS), load_file(back / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)
    assert MultiModalAdapter.from_pretrained(back).scale == 0.2


def test_push_uploads_the_adapter_with_the_reported_results(trained, tmp_path):
    from fake_hub import FakeHub

    with FakeHub({"hf_mine": "me"}) as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_mine",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        with process(
            *("push", trained[0], "me/icons", "--base-model", "you/clip", "--license", "mit"),
            **environment,
        ) as pushed:
            stdout, stderr = pushed.communicate()
        assert pushed.returncode == 0, stderr
        assert stdout.startswith(hub.url)
        assert len(stdout.splitlines()) == 1
        files = hub.files("me/icons")
    metrics = json.loads((trained[0] / "report" / "metrics.json").read_text())
    card = files["README.md"].decode()
    assert f"{metrics['adapted']['accuracy_pct']:.2f} %" in card
    assert "license: mit" in card
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "you/clip"
    pushed_weights, ours = load(files[WEIGHTS]), load_file(trained[0] / WEIGHTS)
    assert all(pushed_weights[key].equal(ours[key]) for key in ours)


# demo, bench, table, plot, data


def test_demo_exports_its_pictures_by_class(tmp_path):
    result = run("demo", "--export", tmp_path / "icons")
    assert result.exit_code == 0
    assert len(list((tmp_path / "icons").iterdir())) == 60
    assert f"mma-adapter train {tmp_path / 'icons'} --model demo" in result.stderr.replace("\n", "")
    assert run("demo", "--export", tmp_path / "icons").exit_code == 1


def test_bench_records_once_and_table_and_plot_read_the_records(photos, tmp_path):
    args = ("bench", "base-to-novel", "--model", "demo", "--methods", "zero_shot")
    args += ("--datasets", f"folder:{photos}", "--seeds", "1", "2", "-o", tmp_path / "runs")
    first = run(*args)
    assert first.exit_code == 0, first.stderr
    assert first.stdout == ""
    assert "2 runs made, 0 were recorded before" in first.stderr
    assert "of 4 classes (anchor, bell, book, umbrella); prompt 'a photo of a {}.'" in first.stderr
    records = (tmp_path / "runs" / "results.jsonl").read_text()
    assert len(records.splitlines()) == 4  # base and novel of two seeds
    again = run(*args)
    assert "0 runs made, 2 were recorded before" in again.stderr
    assert (tmp_path / "runs" / "results.jsonl").read_text() == records
    other = run(*args[:-1], tmp_path / "others", "--transform", "processor")
    assert other.exit_code == 0, other.stderr
    assert '"transform": "processor"' in (tmp_path / "others" / "results.jsonl").read_text()
    assert run(*args, "--transform", "none").exit_code == 2

    table = run("table", tmp_path / "runs")
    assert "| Base | Novel | HM |" in table.stdout
    rows = list(csv.reader(io.StringIO(run("table", tmp_path / "runs", "--format", "csv").stdout)))
    assert f"folder:{photos}" in {cell for row in rows for cell in row}
    unknown = run("table", tmp_path / "runs", "--against", "mma")
    assert unknown.exit_code == 1
    assert "baseline='mma'" in unknown.stderr
    page = Path(run("plot", tmp_path / "runs").stdout.strip())
    assert page == tmp_path / "runs" / "report" / "index.html"
    assert page.is_file()


def test_the_demo_bench_runs_the_methods_it_is_told_to(tmp_path):
    args = ("bench", "domain-generalization", "--demo", "--seeds", "1", "-o", tmp_path)
    done = run(*args, "--methods", "zero_shot")
    assert "1 runs made" in done.stderr
    records = (tmp_path / "results.jsonl").read_text().splitlines()
    assert {json.loads(record)["method"] for record in records} == {"zero_shot"}
    unknown = run(*args, "--methods", "zero_shoot")
    assert unknown.exit_code == 1
    assert "'zero_shoot'" in unknown.stderr


def test_bench_takes_settings_and_refuses_unknown_ones(photos, tmp_path):
    args = ("bench", "few-shot", "--model", "demo", "--methods", "mma", "-o", tmp_path)
    args += ("--datasets", f"folder:{photos}", "--seeds", "1")
    unknown = run(*args, "--set", "nonsense=1")
    assert unknown.exit_code == 1
    assert "nonsense" in unknown.stderr
    assert run(*args, "--set", "nonsense").exit_code == 2
    assert run(*args, "--demo").exit_code == 2


def test_data_check_exits_with_1_if_a_folder_cannot_be_used(tmp_path):
    empty = run("data", "check", tmp_path)
    assert empty.exit_code == 0
    assert empty.stdout.count("absent") == 15
    (tmp_path / "oxford_pets").mkdir()
    found = run("data", "check", tmp_path, "oxford_pets")
    assert found.exit_code == 1
    assert "incomplete" in found.stdout
    assert "split_zhou_OxfordPets.json" in found.stdout
    splits = run("data", "splits", tmp_path, tmp_path)
    assert splits.exit_code == 1
    assert "no split file" in splits.stderr
