"""The commands for researchers: `bench`, `table`, `plot`, `analyze` and `data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import ConfigError, MMAError

if TYPE_CHECKING:
    from .bench.encoder import DualEncoder
    from .bench.protocols import Run
    from .bench.sweep import Progress, SweepReport
    from .data import Dataset

Runs = Annotated[Path, typer.Argument(help="Results file, or folder with .jsonl files.")]
Root = Annotated[Path, typer.Argument(help="Folder with one folder per published data set.")]


def bench(
    protocol: Annotated[
        str,
        typer.Argument(
            help="base-to-novel, cross-dataset, domain-generalization, few-shot, ablation or all."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the records.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="CLIP on the Hub, a folder, or 'demo'.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one folder per published data set.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Names of methods; 'zero_shot mma' by default, all with --demo."),
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(help="Data sets by name, folder:PATH or hf:REPO."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds; one run each.")] = "1 2 3",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    transform: Annotated[
        str,
        typer.Option(help="Test pictures: the papers' reference, or the model's own processor."),
    ] = "reference",
    own_split: Annotated[
        bool,
        typer.Option("--own-split", help="Divide pictures here if a split file is missing."),
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Use the embedded CLIP and pictures, offline.")
    ] = False,
) -> None:
    """Run a protocol of the paper; what is recorded already is not run again."""
    from .bench.results import PROTOCOLS
    from .console import quiet_libraries, stderr

    if protocol != "all" and protocol not in PROTOCOLS:
        raise typer.BadParameter(
            f"{protocol!r}; pass one of {', '.join(PROTOCOLS)} or all", param_hint="PROTOCOL"
        )
    if transform not in ("reference", "processor"):
        raise typer.BadParameter(
            f"{transform!r}; pass reference or processor", param_hint="--transform"
        )
    if demo and (model or data or datasets or changes or transform != "reference"):
        raise typer.BadParameter("--demo has its own model, data and settings; leave them out")
    quiet_libraries()
    console = stderr()
    protocols: Any = PROTOCOLS if protocol == "all" else (protocol,)

    def tell(progress: Progress) -> None:
        console.print(describe_progress(progress), markup=False, soft_wrap=True)

    if demo:
        from .bench.demo_sets import METHODS, run_demo_bench

        report = run_demo_bench(
            output,
            parse_seeds(seeds),
            tell,
            protocols=protocols,
            methods=parse_names(methods) or METHODS,
        )
    else:
        from .bench.execution import root_loader
        from .bench.sweep import run_sweep

        if model is None:
            raise typer.BadParameter("pass --model, or --demo", param_hint="--model")
        settings = parse_changes(changes or [])
        names, chosen = parse_names(datasets), parse_names(methods) or ["zero_shot", "mma"]
        planned = [
            run
            for one in protocols
            for run in plan(one, chosen, parse_seeds(seeds), names, settings)
        ]
        load = root_loader(data, own_split=own_split)
        for name in names:
            if ":" in name:  # the user's own pictures, whose class names and prompt are a guess
                dataset = load(name, shots=-1, seed=1, classes="all")
                console.print(describe_own(dataset), markup=False, soft_wrap=True)
        report = run_sweep(
            planned,
            load_encoder(model, output, transform),
            load,
            output / "results.jsonl",
            progress=tell,
        )
    finish(report, output, protocol)


def describe_own(dataset: Dataset) -> str:
    """Return one line about the user's own pictures: classes and prompt."""
    names = ", ".join(dataset.classnames[:8]) + (", ..." if dataset.num_classes > 8 else "")
    return (
        f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test pictures of "
        f"{dataset.num_classes} classes ({names}); prompt {dataset.template!r}, "
        "--set template=... for another"
    )


def describe_progress(progress: Progress) -> str:
    """Return one line about a run of a sweep."""
    run = progress.run
    what = " ".join(filter(None, [run.method, run.dataset, run.variant, f"seed {run.seed}"]))
    left = "" if progress.seconds_left is None else f", {progress.seconds_left / 60:.0f} min left"
    line = f"[{progress.done}/{progress.total}{left}] {progress.event}: {run.protocol} {what}"
    return f"{line}: {progress.error}" if progress.error else line


def finish(report: SweepReport, output: Path, protocol: str) -> None:
    """Say what a sweep did.

    Raises:
        MMAError: A run failed.
    """
    typer.echo(
        f"{report.executed} runs made, {report.skipped} were recorded before, in "
        f"{report.seconds:.0f} s. Next: mma-adapter table {output} --protocol "
        f"{'base-to-novel' if protocol == 'all' else protocol}",
        err=True,
    )
    if report.failed:
        raise MMAError(
            f"{len(report.failed)} of {report.total} runs failed, first {report.failed[0][1]}"
        )


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of "1,2,3" or "1 2 3"."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise typer.BadParameter(
            f"{text!r}; pass whole numbers such as 1,2,3", param_hint="--seeds"
        )
    return [int(word) for word in words]


def parse_names(text: str | None) -> list[str]:
    """Return the names of "a,b" or "a b"; paths with spaces need commas."""
    words = (text or "").split(",") if "," in (text or "") else (text or "").split()
    return [word.strip() for word in words if word.strip()]


def parse_changes(changes: Sequence[str]) -> dict[str, str]:
    """Return the settings of `--set key=value`."""
    for change in changes:
        if "=" not in change:
            raise typer.BadParameter(f"{change!r}; pass KEY=VALUE", param_hint="--set")
    return dict(change.split("=", 1) for change in changes)


def plan(
    protocol: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    datasets: Sequence[str],
    settings: dict[str, str],
) -> list[Run]:
    """List the runs of one protocol; of a transfer, the first data set is the source."""
    from .bench import protocols

    chosen: tuple[Any, ...] = (list(datasets),) if datasets else ()
    if protocol == "ablation":
        return protocols.ablation(
            protocols.Plan(methods=("mma",), seeds=seeds, overrides=settings), *chosen
        )
    whole = protocols.Plan(methods=methods, seeds=seeds, overrides=settings)
    if protocol in ("cross-dataset", "domain-generalization"):
        make = (
            protocols.cross_dataset
            if protocol == "cross-dataset"
            else protocols.domain_generalization
        )
        if len(datasets) == 1:
            raise ConfigError(f"{protocol} needs a source and targets, not {datasets[0]} alone")
        return make(whole, datasets[0], datasets[1:]) if datasets else make(whole)
    if protocol == "few-shot":
        return protocols.few_shot(whole, *chosen)
    return protocols.base_to_novel(whole, *chosen)


def load_encoder(model: str, cache: Path, transform: Any) -> DualEncoder:
    """Load a host for the bench; features of the untouched tower are kept beside the records."""
    from .bench.encoder import DualEncoder
    from .bench.features import FeatureStore
    from .jobs import load_host

    host = load_host(model)
    return DualEncoder(
        host.model,
        host.tokenizer,
        host.processor,
        name="tiny-icon-clip" if model == "demo" else model,
        transform=transform,
        store=FeatureStore(cache / "features"),
    )


def table(
    runs: Runs,
    protocol: Annotated[str, typer.Option(help="Protocol of the table.")] = "base-to-novel",
    paper: Annotated[bool, typer.Option("--paper", help="Put the published rows beside.")] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Print paired differences to this method, with 95 % bootstrap intervals.",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="markdown, latex, csv or html.")] = "markdown",
    logs: Annotated[
        bool, typer.Option("--logs", help="The folder holds logs of the authors' code.")
    ] = False,
) -> None:
    """Print a table in the paper's layout."""
    from .bench.comparison import differences_table
    from .bench.tables import results_table

    if paper and against:
        raise typer.BadParameter("published rows have no seeds to pair; leave --paper out")
    if format not in ("markdown", "latex", "csv", "html"):
        raise typer.BadParameter(
            f"{format!r}; pass markdown, latex, csv or html", param_hint="--format"
        )
    results: Any = read_records(runs, logs=logs)
    chosen: Any = {"protocol": protocol, "format": format}
    if against:
        typer.echo(differences_table(results, **chosen, baseline=against))
    else:
        typer.echo(results_table(results, **chosen, paper=paper))


def read_records(runs: Path, *, logs: bool) -> list[Any]:
    """Read records, or the authors' logs, whose gaps are named on stderr."""
    from .bench.logs import read_logs
    from .bench.results import read_results

    if not logs:
        return read_results(runs)
    found = read_logs(runs)
    for gap in found.missing:
        typer.echo(f"note: no result in {gap.path}: {gap.reason}", err=True)
    return found.results


def plot(
    runs: Runs,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report; else RUNS/report.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method to look at class by class.")] = "mma",
    layers: Annotated[
        Path | None, typer.Option(help="JSON of `mma-adapter analyze` to show, too.")
    ] = None,
    logs: Annotated[
        bool, typer.Option("--logs", help="The folder holds logs of the authors' code.")
    ] = False,
) -> None:
    """Draw all curves and tables of the records into a page that opens offline."""
    from .analysis import LayerAnalysis
    from .bench.report import write_report

    folder = output or (runs if runs.is_dir() else runs.parent) / "report"
    analysis = None if layers is None else LayerAnalysis.load(layers)
    results = read_records(runs, logs=logs)
    typer.echo(write_report(results, folder, method=method, analysis=analysis))


def analyze(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for JSON and curves.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="CLIP on the Hub, a folder, or 'demo'.")
    ] = "demo",
    datasets: Annotated[
        str | None,
        typer.Option(help="Data sets by name; the embedded ones by default."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with one folder per published data set.")
    ] = None,
    shots: Annotated[int, typer.Option(help="Pictures per class to fit probes on.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the choice of pictures.")] = 1,
) -> None:
    """Look at what each layer tells, and where to start adapting."""
    from .analysis import analyze as analyze_layers
    from .bench.plots import layer_curves
    from .console import quiet_libraries
    from .data import load_dataset
    from .jobs import load_host

    quiet_libraries()
    names = parse_names(datasets)
    if names:
        sets = [load_dataset(name, data, shots=-1) for name in names]
    else:
        from .bench.demo_sets import demo_loader, topical_sets

        load = demo_loader()
        sets = [load(name, shots=-1, seed=seed, classes="all") for name in topical_sets()]
    host = load_host(model)
    result = analyze_layers(
        host.model, host.tokenizer, host.processor, sets, shots=shots, seed=seed
    )
    output.mkdir(parents=True, exist_ok=True)
    result.save(output / "layers.json")
    layer_curves(result).savefig(output / "layers.svg")
    typer.echo(f"start_layer {result.start_layer}: {result.reason}")
    typer.echo(f"curves: {output / 'layers.svg'}, figures: {output / 'layers.json'}", err=True)


def data_check(
    root: Root,
    names: Annotated[list[str] | None, typer.Argument(help="Only these data sets.")] = None,
) -> None:
    """Say which published data sets are there, whole, and what is missing. Exits with 1 if any
    folder that is there cannot be used as published."""
    from .console import print_findings
    from .data.check import check_root, find_own_sources

    findings = check_root(root, names or None)
    print_findings(findings, find_own_sources(root))
    if any(finding.status in ("incomplete", "differs") for finding in findings):
        raise typer.Exit(1)


def data_splits(
    folder: Annotated[Path, typer.Argument(help="Folder with split_zhou_*.json files.")],
    root: Root,
) -> None:
    """Copy published split files to their places. Exits with 1 if one is refused."""
    from .data.check import import_splits

    imports = import_splits(folder, root)
    for found in imports:
        remark = f" ({found.remark})" if found.remark else ""
        typer.echo(f"{found.status}: {found.name}: {found.target}{remark}")
    if any(found.status == "refused" for found in imports):
        raise typer.Exit(1)


def add_commands(app: typer.Typer, examples: Any) -> None:
    """Put these commands on the command line."""
    for command, lines in (
        (
            bench,
            (
                "mma-adapter bench base-to-novel --demo --seeds 1 -o runs",
                "mma-adapter bench base-to-novel --data ROOT --model openai/clip-vit-base-patch16 "
                "--methods zero_shot mma --datasets oxford_pets dtd -o runs",
            ),
        ),
        (
            table,
            (
                "mma-adapter table runs --protocol base-to-novel --paper",
                "mma-adapter table runs --protocol base-to-novel --against zero_shot",
            ),
        ),
        (plot, ("mma-adapter plot runs -o report",)),
        (
            analyze,
            (
                "mma-adapter analyze --model demo -o layers",
                "mma-adapter analyze --model openai/clip-vit-base-patch16 --data ROOT "
                "--datasets oxford_pets dtd -o layers",
            ),
        ),
    ):
        app.command(epilog=examples(*lines))(command)
    data = typer.Typer(help="Look after published data sets.", no_args_is_help=True)
    data.command("check", epilog=examples("mma-adapter data check ROOT"))(data_check)
    data.command("splits", epilog=examples("mma-adapter data splits DOWNLOADS ROOT"))(data_splits)
    app.add_typer(data, name="data")
