"""The model card, `README.md`: what the adapter is, how to load it, what it was measured at.

Everything the library writes stands in the YAML block and between two HTML comments. A second save
replaces its own keys and that section; what a person wrote around them stays, byte for byte.

Source of the keys: the Hub's model card specification.
"""

import html
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from .config import MMAConfig
from .hub import hub_id

BEGIN = "<!-- mma_adapter: written on every save; write your own text outside this section -->"
END = "<!-- mma_adapter: end -->"

_TAGS = ["mma", "adapter", "clip", "few-shot"]
_ALWAYS_OURS = ("library_name", "base_model", "base_model_relation", "model-index")
_CITATION = """\
```bibtex
@inproceedings{yang2024mma,
  title     = {{MMA}: Multi-Modal Adapter for Vision-Language Models},
  author    = {Yang, Lingxiao and Zhang, Ru-Yuan and Wang, Yanchen and Xie, Xiaohua},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024}
}
```"""


@dataclass(frozen=True, kw_only=True)
class CardResult:
    """One measured accuracy, in percent.

    Args:
        dataset: Name for people, such as `"Oxford Pets"`.
        accuracy_pct: Accuracy with the adapter.
        zero_shot_accuracy_pct: Accuracy of the same model without it.
        dataset_id: The data set's name on the Hub.
        split: Which split was scored.
    """

    dataset: str
    accuracy_pct: float
    zero_shot_accuracy_pct: float | None = None
    dataset_id: str | None = None
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class CardFields:
    """What only the author of an adapter can know.

    Args:
        license: Licence identifier of the Hub, such as `"apache-2.0"`.
        datasets: Data sets on the Hub that the adapter was trained on.
        language: Language codes of the class names and templates.
        results: What was measured.
    """

    license: str | None = None
    datasets: Sequence[str] | None = None
    language: str | Sequence[str] | None = None
    results: Sequence[CardResult | EvalResult] = ()


def write_card(
    path: Path, config: MMAConfig, fields: CardFields, *, repo_id: str | None = None
) -> None:
    """Write the card, or bring the one that is there up to date."""
    old = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
    text = render(old, config, fields, repo_id)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(text.encode("utf-8", "surrogateescape"))
    os.replace(fresh, path)


def render(old: str, config: MMAConfig, fields: CardFields, repo_id: str | None) -> str:
    """Return the card's text: `old` with the library's own parts replaced."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", old, re.S | re.M)
    front, body = (match[1], old[match.end() :]) if match else ("", old)
    section = f"{BEGIN}\n\n{_section(config, fields, repo_id)}\n\n{END}"
    if not body.strip():
        body = f"\n# {_title(config)}\n\n{section}\n"
    elif BEGIN in body and END in body.partition(BEGIN)[2]:
        before, _, rest = body.partition(BEGIN)
        body = before + section + rest.partition(END)[2]
    # A body without the section is somebody's own text: it stays as it is.
    return f"---\n{_merged(front, _front(config, fields))}---\n{body}"


def _title(config: MMAConfig) -> str:
    base = hub_id(config.base_model_name_or_path)
    return f"Multi-Modal Adapter for {base or f'a {_family(config)} model'}"


def _family(config: MMAConfig) -> str:
    return _plain(config.model_type or "clip")


def _front(config: MMAConfig, fields: CardFields) -> str:
    base = hub_id(config.base_model_name_or_path)
    data = ModelCardData(
        library_name="mma_adapter",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag="zero-shot-image-classification" if len(config.towers) == 2 else None,
        license=fields.license,
        datasets=[name for name in fields.datasets or () if not _is_local(name)] or None,
        language=fields.language,  # pyright: ignore[reportArgumentType]
        tags=_TAGS,
        model_name=_title(config),
        eval_results=[_eval_result(result) for result in fields.results] or None,
    )
    # Without results the Hub's own class leaves the name behind, which is no key of a card.
    kept = (lines for key, lines in _chunks(data.to_yaml()) if key != "model_name")
    return "".join(f"{line}\n" for lines in kept for line in lines)


def _section(config: MMAConfig, fields: CardFields, repo_id: str | None) -> str:
    templates = [config.template] if isinstance(config.template, str) else config.template or ()
    parts = [
        "Small bottleneck branches in the upper layers of CLIP's towers that meet in one shared "
        "projection per layer (MMA, CVPR 2024). The base model stays as it is; this repository "
        f"holds the {config.num_weights:,} weights of the adapter alone.",
        f"## How to use\n\n{_usage(config, templates, repo_id)}",
        f"## Results\n\n{_results(fields.results)}" if fields.results else "",
        f"## Prompts\n\n{_bullets(templates)}" if templates else "",
        f"## Classes\n\n{_names(config.classnames)}" if config.classnames else "",
        f"## Shape\n\n{_shape(config)}",
        f"## Citation\n\n{_CITATION}",
    ]
    return "\n\n".join(filter(None, parts))


def _usage(config: MMAConfig, templates: Sequence[str], repo_id: str | None) -> str:
    base, here = hub_id(config.base_model_name_or_path), repo_id or "path/to/this/folder"
    onto = "" if base else ", model=base_model"
    loading = [
        "import mma_adapter  # first: it makes the adapter known to transformers and PEFT",
        "",
        *([] if base else ["# base_model: the model this adapter was trained on"]),
        f'model = mma_adapter.load_mma("{here}"{onto})',
    ]
    if base and len(config.towers) == 2:
        template = templates[0] if templates else "a photo of a {}."
        labels = list(config.classnames or ("cat", "dog"))[:3]
        loading += [
            "",
            "from transformers import AutoImageProcessor, AutoTokenizer, pipeline",
            "",
            "classify = pipeline(",
            '    "zero-shot-image-classification",',
            "    model=model,",
            f'    tokenizer=AutoTokenizer.from_pretrained("{base}"),',
            f'    image_processor=AutoImageProcessor.from_pretrained("{base}"),',
            ")",
            "classify(",
            '    "picture.jpg",',
            f"    candidate_labels=[{', '.join(map(_code, labels))}],",
            f"    hypothesis_template={_code(template)},",
            ")",
        ]
    return "\n".join(["```python", *loading, "```"])


def _results(results: Sequence[CardResult | EvalResult]) -> str:
    rows = ["| data | split | zero-shot | with the adapter |", "|---|---|---|---|"]
    for result in results:
        if not isinstance(result, CardResult):
            cells = [result.dataset_name, result.dataset_split or "", "", str(result.metric_value)]
        else:
            before = result.zero_shot_accuracy_pct
            cells = [
                _public(result.dataset),
                result.split,
                "" if before is None else f"{before:.2f} %",
                f"{result.accuracy_pct:.2f} %",
            ]
        rows.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    return "\n".join(rows)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _names(names: Sequence[str], most: int = 200) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} classes: {', '.join(map(_plain, names[:most]))}{more}"


def _shape(config: MMAConfig) -> str:
    rows = {
        "towers": ", ".join(config.towers),
        "layers, counted from 1": f"{config.start_layer} to {config.end_layer}",
        "bottleneck": config.bottleneck_dim,
        "scale": config.scale,
        "shared projection": config.shared,
        "weights": f"{config.num_weights:,}",
    }
    body = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"| | |\n|---|---|\n{body}"


def _code(text: str) -> str:
    """Return a Python string that can stand in Markdown without ending our section."""
    return ascii(text).replace("<", r"\x3c").replace("`", r"\x60")


def _plain(text: str) -> str:
    """Keep names from acting as Markdown or HTML, or from ending our section."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")


def _is_local(name: str) -> bool:
    return os.path.exists(name) or name.startswith(("/", "~", ".")) or "\\" in name


def _eval_result(result: CardResult | EvalResult) -> EvalResult:
    if not isinstance(result, CardResult):
        return result
    return EvalResult(
        task_type="zero-shot-image-classification",
        dataset_type=result.dataset_id or "imagefolder",
        dataset_name=_public(result.dataset),
        dataset_split=result.split,
        metric_type="accuracy",
        metric_name="Accuracy (%)",
        metric_value=round(result.accuracy_pct, 2),
    )


def _public(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if _is_local(name) else name


def _merged(old: str, new: str) -> str:
    """Put our keys into the YAML block line by line, so that foreign lines stay as they are."""
    ours = dict(_chunks(new))
    lines = []
    for key, chunk in _chunks(old):
        fresh = ours.pop(key, None) if key else None
        if key == "tags":
            chunk = _with_tags(chunk)
        elif fresh is not None and (key in _ALWAYS_OURS or key in _author_keys(new)):
            chunk = fresh
        lines += chunk
    for chunk in ours.values():
        lines += chunk
    return "".join(f"{line}\n" for line in lines)


def _author_keys(new: str) -> set[str | None]:
    return {key for key, _ in _chunks(new)} & {"license", "datasets", "language"}


def _with_tags(chunk: list[str]) -> list[str]:
    there = set(re.findall(r"[^\s,\[\]'\"]+", " ".join(chunk)))
    missing = [tag for tag in _TAGS if tag not in there]
    inline = chunk[0].partition(":")[2].strip()
    if inline.startswith("[") and inline.endswith("]"):
        return [f"tags: [{', '.join([*filter(None, [inline[1:-1].strip()]), *missing])}]"]
    if inline and not inline.startswith(("#", "[")):
        chunk = ["tags:", f"- {inline}"]
    indent = chunk[1][: -len(chunk[1].lstrip())] if len(chunk) > 1 else ""
    return [*chunk, *(f"{indent}- {tag}" for tag in missing)]


def _chunks(front: str) -> Iterator[tuple[str | None, list[str]]]:
    """Split a YAML block into its top-level keys, each with its lines; None for other lines."""
    key, chunk = None, []
    for line in front.splitlines():
        if chunk and line.startswith((" ", "\t", "-")):
            chunk.append(line)
            continue
        if chunk:
            yield key, chunk
        found = re.match(r"([\w-]+)\s*:", line)
        key, chunk = (found[1] if found else None), [line]
    if chunk:
        yield key, chunk
