"""The `mma-adapter` command: each command parses, calls one function, and prints.

Data goes to stdout, messages and progress to stderr. Exit codes: 0 done, 1 an error this library
explains, 2 wrong usage, 130 interrupted. torch and transformers are imported inside the commands,
so that help comes at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperGroup
except ImportError as error:
    raise SystemExit('the command line needs: pip install "mma-adapter[train]"') from error

from .cli_bench import add_commands, parse_seeds
from .errors import ConfigError, MMAError

LISTS = ("--seeds", "--methods", "--datasets")


def join_lists(args: Sequence[str]) -> list[str]:
    """Let the options that take lists be written `--seeds 1 2 3` as well as `--seeds 1,2,3`."""
    joined: list[str] = []
    option = ""
    for arg in args:
        takes = (option == "--seeds" and arg.isdecimal()) or option in LISTS[1:]
        if arg.startswith("-"):
            option = arg
        elif takes and joined[-1] != option:
            joined[-1] += f",{arg}"
            continue
        elif not takes:
            option = ""
        joined.append(arg)
    return joined


class Commands(TyperGroup):
    """Turns this library's errors and Ctrl-C into a message and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_lists(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MMAError as error:
            typer.echo(f"mma-adapter: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo(f"\nmma-adapter: {str(error) or 'interrupted'}", err=True)
            raise typer.Exit(130) from error
        except BrokenPipeError:  # `mma-adapter predict ... | head`
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=Commands,
    help="The Multi-Modal Adapter (MMA) for CLIP: train it on your pictures, look at it, use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Adapter = Annotated[str, typer.Argument(help="Adapter folder, or repository on the Hub.")]
Source = Annotated[
    str,
    typer.Argument(
        help="Folder with one folder per class, a CSV file (path,label), or hf:REPO.",
    ),
]
Classnames = Annotated[
    Path | None,
    typer.Option("--classnames", help="Text file: lines of 'FOLDER NAME', or one name per line."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Base model instead of the one the adapter names."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def examples(*commands: str) -> str:
    """Return the examples at the end of a command's help."""
    return "\n\n".join(["Examples:", *(f"[cyan]{command}[/]" for command in commands)])


@app.command(
    epilog=examples(
        "mma-adapter train photos/ --model openai/clip-vit-base-patch16 --shots 16 -o out",
        "mma-adapter train photos/ --model openai/clip-vit-base-patch16 -o out --resume",
        "mma-adapter train icons/ --model demo --template 'an icon of a {}.' --scale 0.2 "
        "--lr 0.02 -o out",
    )
)
def train(
    source: Source,
    model: Annotated[
        str, typer.Option("--model", "-m", help="CLIP on the Hub, a folder, or 'demo'.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for adapter and report.")],
    shots: Annotated[int, typer.Option(help="Training pictures per class; -1 for all.")] = 16,
    classnames: Classnames = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt with {}; several are averaged.")
    ] = None,
    start_layer: Annotated[int, typer.Option(help="First adapted layer, counted from 1.")] = 5,
    end_layer: Annotated[int | None, typer.Option(help="Last adapted layer.")] = None,
    scale: Annotated[float, typer.Option(help="Factor on the branches' output.")] = 0.001,
    bottleneck_dim: Annotated[int, typer.Option(help="Inner size of the branches.")] = 32,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures.")] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.0015,
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of shots, weights and order.")] = 1,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable pictures out.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in the folder.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on a few of your pictures, and report what it changed."""
    from .checkpoints import latest_checkpoint
    from .console import print_training, quiet_libraries, stderr
    from .jobs import train_on_source
    from .progress import TrainingProgress, counting
    from .reporting import write_report
    from .training import CHECKPOINTS, TrainConfig, TrainingInterrupted

    quiet_libraries()
    console = stderr()
    if not resume and latest_checkpoint(output / CHECKPOINTS) is not None:
        raise ConfigError(
            f"{output} holds an interrupted run; go on with --resume, or pass another folder to -o"
        )
    templates = template or ["a photo of a {}."]
    config = TrainConfig(
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        template=templates[0] if len(templates) == 1 else tuple(templates),
        seed=seed,
        precision=precision,  # pyright: ignore
    )
    adapter = {
        "start_layer": start_layer,
        "end_layer": end_layer,
        "scale": scale,
        "bottleneck_dim": bottleneck_dim,
    }
    progress = TrainingProgress(console)
    try:
        done = train_on_source(
            source,
            model,
            output,
            shots=shots,
            classnames=classnames,
            config=config,
            adapter=adapter,
            skip_bad=skip_bad,
            resume=resume,
            tell=lambda text: console.print(text, markup=False),
            counter=lambda what, total: counting(console, what, total),
            callbacks=[progress],
        )
    except TrainingInterrupted as error:
        progress.close()
        if error.checkpoint is None:
            raise
        raise KeyboardInterrupt(
            f"interrupted; the run is kept in {error.checkpoint}. Go on with the same command and "
            "--resume"
        ) from error
    finally:
        progress.close()
    facts = {
        "source": done.data.name,
        "model": model,
        "shots": shots,
        "templates": templates,
        **adapter,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "training_pictures": len(done.data.train),
        "skipped_pictures": [str(sample.path) for sample, _ in done.skipped],
        "training_seconds": round(done.result.seconds, 1),
    }
    files = write_report(
        output / "report",
        done.zero_shot,
        done.adapted,
        title=f"{done.data.name}: zero-shot and adapted",
        facts=facts,
        losses=[record.loss for record in done.result.history],
    )
    if as_json:
        typer.echo((output / "report" / "metrics.json").read_text())
    print_training(done, output, files, as_json=as_json)


@app.command(
    epilog=examples(
        "mma-adapter evaluate out photos/", "mma-adapter evaluate you/pets-mma photos/ --json"
    )
)
def evaluate(
    adapter: Adapter,
    source: Source,
    model: Model = None,
    classnames: Classnames = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Score all pictures, not the test part alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a folder's test pictures without and with an adapter."""
    from .console import changes_table, comparison_table, quiet_libraries, stderr, stdout
    from .jobs import evaluate_on_source
    from .progress import counting
    from .reporting import class_changes, figures

    quiet_libraries()
    zero_shot, adapted = evaluate_on_source(
        adapter,
        source,
        model=model,
        classnames=classnames,
        everything=everything,
        counter=lambda what, total: counting(stderr(), what, total),
    )
    changes = class_changes(zero_shot, adapted)
    if as_json:
        classes = [{**vars(c), "change": c.change} for c in changes]
        both = {"zero_shot": figures(zero_shot), "adapted": figures(adapted), "classes": classes}
        typer.echo(json.dumps(both, indent=2))
        return
    title = f"{adapted.total} pictures of {len(adapted.classnames)} classes"
    stdout().print(comparison_table(title, zero_shot, adapted))
    stdout().print(changes_table(changes))


@app.command(
    epilog=examples(
        "mma-adapter predict out holiday/*.jpg",
        "mma-adapter predict out holiday/ --top 3 --csv > predictions.csv",
    )
)
def predict(
    adapter: Adapter,
    pictures: Annotated[list[str], typer.Argument(help="Pictures, folders or patterns.")],
    model: Model = None,
    classnames: Annotated[
        Path | None, typer.Option(help="Text file with one class name per line.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Prompt with {}.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes per picture.")] = 3,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Name what pictures show. Exits with 1 if one cannot be read."""
    from .console import predictions_table, quiet_libraries, stderr, stdout
    from .prediction import predict_pictures, predictions_csv, read_lines
    from .progress import counting

    if as_json and as_csv:
        raise typer.BadParameter("pass one of --json and --csv")
    quiet_libraries()
    predictions, bad = predict_pictures(
        adapter,
        pictures,
        model=model,
        classnames=None if classnames is None else read_lines(classnames),
        template=template,
        top=top,
        counter=lambda what, total: counting(stderr(), what, total),
    )
    if as_json:
        typer.echo(json.dumps([p.to_dict() for p in predictions], indent=2))
    elif as_csv:
        typer.echo(predictions_csv(predictions), nl=False)
    elif predictions:
        stdout().print(predictions_table(predictions))
    for path, reason in bad:
        typer.echo(f"mma-adapter: cannot read {path}: {reason}", err=True)
    if bad:
        raise typer.Exit(1)


@app.command(epilog=examples("mma-adapter info out", "mma-adapter info you/pets-mma --json"))
def info(adapter: Adapter, as_json: AsJson = False) -> None:
    """Show what an adapter is; its base model is not loaded."""
    from .adapter import MultiModalAdapter
    from .console import describe_adapter, stdout

    config = MultiModalAdapter.from_pretrained(adapter).config
    folder = Path(adapter).expanduser()
    sizes = {p.name: p.stat().st_size for p in sorted(folder.glob("*")) if p.is_file()}
    if as_json:
        facts = {**config.to_dict(), "num_weights": config.num_weights, "file_bytes": sizes}
        typer.echo(json.dumps(facts, indent=2))
    else:
        stdout().print(describe_adapter(config, sizes))


@app.command(
    epilog=examples(
        "mma-adapter push out you/pets-mma --private",
        "mma-adapter push out you/pets-mma --base-model openai/clip-vit-base-patch16",
    )
)
def push(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, made if missing.")],
    private: Annotated[
        bool | None, typer.Option(help="Who may see a new repository; else your default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="The base model's name on the Hub, if you had a copy.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence for the card, such as apache-2.0.")
    ] = None,
) -> None:
    """Upload an adapter with its card; log in first with `hf auth login`."""
    from .adapter import MultiModalAdapter
    from .jobs import reported_results

    commit = MultiModalAdapter.from_pretrained(adapter).push_to_hub(
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        base_model=base_model,
        license=licence,
        results=reported_results(adapter),
    )
    typer.echo(commit.pr_url if create_pr else commit.commit_url)


@app.command(
    epilog=examples(
        "mma-adapter convert model.pth.tar-5 out --scale 0.001",
        "mma-adapter convert out model.pth.tar-5",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint file, or adapter folder.")],
    target: Annotated[Path, typer.Argument(help="Adapter folder, or checkpoint file.")],
    scale: Annotated[
        float | None, typer.Option(help="Factor of the authors' run; their file has none.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Base model to record in the adapter folder.")
    ] = None,
) -> None:
    """Turn the authors' checkpoint into an adapter folder, or back."""
    from .adapter import MultiModalAdapter
    from .official import read_official, write_official

    if source.is_dir():
        adapter = MultiModalAdapter.from_pretrained(source)
        if scale is not None:
            raise ConfigError(
                f"--scale {scale:g}, but the authors' file holds no scale; leave it out (this "
                f"adapter's is {adapter.scale:g})"
            )
        write_official(adapter, target)
        typer.echo(f"set TRAINER.MMADAPTER.ADAPTER_SCALE {adapter.scale:g} beside it", err=True)
    elif scale is None:
        raise ConfigError(
            f"{source} does not hold the scale; pass --scale, ADAPTER_SCALE of the run's YAML "
            "(0.001 in the authors' base-to-novel runs)"
        )
    else:
        read_official(source, scale).save_pretrained(target, base_model=base_model)
    typer.echo(target)


@app.command(
    epilog=examples(
        "mma-adapter demo -o demo-out",
        "mma-adapter demo --seeds 1 2 3",
        "mma-adapter demo --export icons",
    )
)
def demo(
    directory: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "demo-out"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds; one training run each.")] = "1",
    export: Annotated[
        Path | None,
        typer.Option(help="Only write the demo's pictures to this new folder, one per class."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, save, reload and look at an adapter on embedded pictures, offline."""
    from .console import print_demo, stderr

    console = stderr()
    if export is not None:
        from .demo import export_folder

        count = export_folder(export)
        console.print(f"{count:,} pictures of 60 classes are in {export}. Next:")
        command = f"mma-adapter train {export} --model demo --template 'an icon of a {{}}.' "
        command += "--scale 0.2 --lr 0.02 --epochs 10 -o out"
        console.print(f"  {command}", markup=False, soft_wrap=True)
        return
    from .console import quiet_libraries
    from .demo.run import run_demo
    from .progress import TrainingProgress

    quiet_libraries()
    result = run_demo(
        directory,
        parse_seeds(seeds),
        tell=lambda text: console.print(text),
        callbacks=[TrainingProgress(console)],
    )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        print_demo(result)


add_commands(app, examples)


def main() -> None:
    """Run the command line."""
    app(prog_name="mma-adapter")
