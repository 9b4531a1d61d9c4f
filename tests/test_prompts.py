"""Class names and templates become prompts; what cannot work is refused by name."""

import pytest

from mma_adapter.backbones import FAMILIES
from mma_adapter.errors import DataError
from mma_adapter.prompts import check_classnames, clean_classname, make_prompts

CLIP, SIGLIP2 = FAMILIES["clip"], FAMILIES["siglip2"]


def test_underscores_become_spaces_and_letters_stay():
    assert clean_classname("Yo_Yo C/V") == "Yo Yo C/V"
    assert clean_classname("  2000_AM  General ") == "2000 AM General"


def test_each_class_gets_one_prompt_per_template():
    prompts = make_prompts(["cat", "hot_dog"], ["a {}.", "the {}!"], CLIP)
    assert prompts == ["a cat.", "the cat!", "a hot dog.", "the hot dog!"]


def test_siglip_2_gets_lower_case_without_punctuation():
    assert make_prompts(["Hot_Dog"], "A photo of a {}.", SIGLIP2) == ["a photo of a hot dog"]


def test_braces_in_a_class_name_are_only_text():
    assert make_prompts(["{0} {x}"], "a {}.", CLIP) == ["a {0} {x}."]


def test_equal_names_are_refused_unless_accepted():
    with pytest.raises(DataError, match="'missile'"):
        check_classnames(["missile", "crane", "missile"])
    accepted = check_classnames(["missile", "missile"], allow_duplicates=True)
    assert accepted == ["missile", "missile"]
