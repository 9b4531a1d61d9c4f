"""The `mma-adapter` command: each command parses, calls one function, and prints.

Data goes to stdout, messages and progress to stderr. Exit codes: 0 done, 1 an error this library
explains, 2 wrong usage, 130 interrupted. torch and transformers are imported inside the commands,
so that help comes at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from typer.core import TyperGroup
except ImportError as error:
    raise SystemExit('the command line needs: pip install "mma-adapter[train]"') from error

from .errors import MMAError


class Commands(TyperGroup):
    """Turns this library's errors and Ctrl-C into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MMAError as error:
            typer.echo(f"mma-adapter: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo(f"\nmma-adapter: {error or 'interrupted'}", err=True)
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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def examples(*commands: str) -> str:
    """Return the examples at the end of a command's help."""
    return "\n\n".join(["Examples:", *(f"[cyan]{command}[/]" for command in commands)])


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of "1,2,3" or "1 2 3"."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise typer.BadParameter(
            f"{text!r}; pass whole numbers such as 1,2,3", param_hint="--seeds"
        )
    return [int(word) for word in words]


@app.command(epilog=examples("mma-adapter demo -o demo-out", "mma-adapter demo --export icons"))
def demo(
    directory: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "demo-out"
    ),
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas or spaces; one training run each.")
    ] = "1",
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
        console.print(f"  mma-adapter train {export} --model demo --shots 16 -o out")
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


def main() -> None:
    """Run the command line."""
    app(prog_name="mma-adapter")
