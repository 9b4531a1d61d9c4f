"""The model card: what it says, what it never says, and what it leaves alone."""

import ast
import re
from dataclasses import replace

import pytest
from huggingface_hub import EvalResult, ModelCard

from mma_adapter import MMAConfig
from mma_adapter.card import BEGIN, END, CardFields, CardResult, render, write_card

BASE = "openai/clip-vit-base-patch16"
CONFIG = MMAConfig(
    text_width=512,
    vision_width=768,
    text_depth=12,
    vision_depth=12,
    model_type="clip",
    base_model_name_or_path=BASE,
    template="a photo of a {}, a type of pet.",
    classnames=("abyssinian", "beagle"),
)
FIELDS = CardFields(
    license="apache-2.0",
    datasets=["you/pets"],
    language="en",
    results=[
        CardResult(dataset="Oxford Pets", accuracy_pct=93.456, zero_shot_accuracy_pct=89.1),
        EvalResult(
            task_type="image-classification",
            dataset_type="you/pets",
            dataset_name="Pets",
            metric_type="accuracy",
            metric_value=91.5,
        ),
    ],
)


def test_a_fresh_card_has_the_keys_the_hub_reads():
    data = ModelCard(render("", CONFIG, FIELDS, "you/pets-mma")).data
    assert data.library_name == "mma_adapter"
    assert data.base_model == BASE
    assert data.base_model_relation == "adapter"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["mma", "adapter", "clip", "few-shot"]
    assert (data.license, data.datasets, data.language) == ("apache-2.0", ["you/pets"], "en")
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [
        ("Oxford Pets", 93.46),
        ("Pets", 91.5),
    ]


def test_a_card_without_extras_has_only_the_keys_that_are_known():
    bare = MMAConfig(text_width=512, vision_width=768)
    assert ModelCard(render("", bare, CardFields(), None)).data.to_dict() == {
        "library_name": "mma_adapter",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["mma", "adapter", "clip", "few-shot"],
    }


def test_the_body_tells_prompts_classes_shape_and_results():
    text = render("", CONFIG, FIELDS, None)
    assert "a photo of a {}, a type of pet." in text
    assert "2 classes: abyssinian, beagle" in text
    assert "| layers, counted from 1 | 5 to 12 |" in text
    assert "| scale | 0.001 |" in text
    assert "674,560 weights" in text
    assert "| Oxford Pets | test | 89.10 % | 93.46 % |" in text
    assert "MMA" in text.split("bibtex")[1]


def test_the_snippet_is_python_that_names_repository_base_and_template():
    text = render("", CONFIG, CardFields(), "you/pets-mma")
    snippet = re.search(r"```python\n(.*?)```", text, re.S)[1]
    compile(snippet, "snippet", "exec")
    assert snippet.startswith("import mma_adapter")
    assert 'load_mma("you/pets-mma")' in snippet
    assert "hypothesis_template='a photo of a {}, a type of pet.'" in snippet
    assert f'from_pretrained("{BASE}")' in snippet


def test_without_a_public_base_the_snippet_asks_for_the_model():
    text = render("", replace(CONFIG, base_model_name_or_path=None), CardFields(), None)
    assert 'load_mma("path/to/this/folder", model=base_model)' in text
    compile(re.search(r"```python\n(.*?)```", text, re.S)[1], "snippet", "exec")


@pytest.mark.parametrize(
    "form", ["{0}", "{0}/", "~/models/clip", "./clip", "..\\clip", "C:\\m\\clip"]
)
def test_a_local_path_never_lands_in_a_card(form, tmp_path):
    path = form.format(tmp_path)
    fields = CardFields(
        datasets=[path, "you/pets"], results=[CardResult(dataset=path, accuracy_pct=50.0)]
    )
    text = render("", replace(CONFIG, base_model_name_or_path=path), fields, None)
    assert path not in text
    assert str(tmp_path.parent) not in text
    data = ModelCard(text).data
    assert data.base_model is None
    assert data.datasets == ["you/pets"]


def test_a_relative_folder_that_looks_like_a_repository_is_a_local_path(tmp_path, monkeypatch):
    (tmp_path / "models" / "clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = replace(CONFIG, base_model_name_or_path="models/clip")
    assert "models/clip" not in render("", config, CardFields(), None)


def test_what_a_person_wrote_survives_a_second_save_byte_for_byte():
    first = render("", CONFIG, FIELDS, None)
    front = "license: mit\n# mine: chosen with care\nthumbnail: 'x.png'  # keep\ntags:\n- pets\n"
    edited = first.replace("license: apache-2.0\n", front, 1).replace(
        f"\n{BEGIN}", f"\nMy words before.\r\n\n{BEGIN}"
    )
    edited = re.sub(r"(?m)^tags:\n- mma\n(- .*\n)*", "", edited, count=1) + "\nMy words after.   \n"
    second = render(edited, replace(CONFIG, scale=0.5), CardFields(), None)

    assert "\nMy words before.\r\n" in second
    assert second.endswith("\nMy words after.   \n")
    assert "# mine: chosen with care\nthumbnail: 'x.png'  # keep\n" in second
    data = ModelCard(second).data
    assert data.license == "mit"  # not given again, so not ours to change
    assert data.tags == ["pets", "mma", "adapter", "clip", "few-shot"]
    assert len(data.eval_results) == 2  # nor are the results
    assert "| scale | 0.5 |" in second
    assert "| scale | 0.001 |" not in second
    assert second.count(BEGIN) == second.count(END) == 1


def test_saving_twice_changes_nothing():
    once = render("", CONFIG, FIELDS, None)
    assert render(once, CONFIG, FIELDS, None) == once


def test_new_values_replace_old_ones():
    once = render("", CONFIG, FIELDS, None)
    fields = CardFields(license="mit", results=[CardResult(dataset="Flowers", accuracy_pct=80.0)])
    data = ModelCard(render(once, CONFIG, fields, None)).data
    assert data.license == "mit"
    assert [r.dataset_name for r in data.eval_results] == ["Flowers"]


@pytest.mark.parametrize(
    "tags", ["tags: [pets, mma]", "tags: pets", "tags:\n  - pets", "tags: []", "tags:"]
)
def test_tags_in_any_notation_are_joined(tags):
    data = ModelCard(render(f"---\n{tags}\n---\n", CONFIG, CardFields(), None)).data
    assert set(data.tags) - {"pets"} == {"mma", "adapter", "clip", "few-shot"}
    assert ("pets" in data.tags) == ("pets" in tags)
    assert len(data.tags) == len(set(data.tags))


def test_somebody_elses_whole_text_only_gets_the_front_matter():
    text = render("# My adapter\n\nAll my own words.\n", CONFIG, CardFields(), None)
    assert text.endswith("---\n# My adapter\n\nAll my own words.\n")
    assert ModelCard(text).data.base_model == BASE


def test_a_card_of_the_hubs_making_gets_a_body():
    text = render("---\nlicense: mit\n---\n", CONFIG, CardFields(), None)
    assert ModelCard(text).data.license == "mit"
    assert "674,560 weights" in text


def test_class_names_cannot_end_the_section_or_act_as_markup():
    config = replace(CONFIG, classnames=(END, "<script>x</script>", "a|b", "```"))
    once = render("", config, CardFields(), None)
    assert once.count(END) == 1
    assert "<script>" not in once
    assert render(once, config, CardFields(), None) == once
    snippet = re.search(r"```python\n(.*?)```", once, re.S)[1]
    labels = re.search(r"candidate_labels=(.*),\n", snippet)[1]
    assert ast.literal_eval(labels) == [END, "<script>x</script>", "a|b"]


def test_very_many_classes_are_cut_short_and_counted():
    config = replace(CONFIG, classnames=tuple(f"class {n}" for n in range(1000)))
    text = render("", config, CardFields(), None)
    assert "1000 classes: class 0," in text
    assert "and 800 more" in text
    assert "class 500" not in text


def test_bytes_that_are_no_text_survive(tmp_path):
    path = tmp_path / "README.md"
    write_card(path, CONFIG, CardFields())
    path.write_bytes(path.read_bytes() + b"\n\xff\xfe mine\n")
    write_card(path, CONFIG, CardFields())
    assert path.read_bytes().endswith(b"\n\xff\xfe mine\n")
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
