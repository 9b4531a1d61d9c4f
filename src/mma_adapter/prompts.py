"""Class prompts: from class names and templates to token ids.

Shapes: N prompts, L tokens.
"""

import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import Family, pooled_positions, vocabulary_size
from .errors import DataError


def clean_classname(name: str) -> str:
    """Return a class name as it stands in a prompt: "_" is a space, as in every CoOp-like code."""
    return " ".join(name.replace("_", " ").split())


def check_classnames(classnames: Sequence[str], *, allow_duplicates: bool = False) -> list[str]:
    """Return the cleaned class names.

    Raises:
        DataError: There are none, one is empty or not text, or two are equal after cleaning.
    """
    if isinstance(classnames, str) or not classnames:
        raise DataError(f"classnames={classnames!r}; pass a list of names, such as ['cat', 'dog']")
    for index, name in enumerate(classnames):
        if not isinstance(name, str) or not clean_classname(name):
            raise DataError(f"class name {index} is {name!r}; every class needs a name")
    cleaned = [clean_classname(name) for name in classnames]
    twice = [name for name, count in Counter(cleaned).items() if count > 1]
    if twice and not allow_duplicates:
        raise DataError(
            f"class names that occur more than once: {', '.join(map(repr, twice[:5]))}; equal "
            "names get equal scores: rename them, or pass allow_duplicates=True to accept that"
        )
    return cleaned


def make_prompts(
    classnames: Sequence[str],
    template: str | Sequence[str],
    family: Family,
    *,
    allow_duplicates: bool = False,
) -> list[str]:
    """Return the prompts of all classes: for each class, one per template.

    Raises:
        DataError: A class name or a template cannot be used.
    """
    templates = [template] if isinstance(template, str) else list(template)
    if not templates:
        raise DataError("no template; pass one such as 'a photo of a {}.'")
    for one in templates:
        if not isinstance(one, str) or one.count("{}") != 1:
            raise DataError(f"template {one!r} needs exactly one {{}} for the class name")
    names = check_classnames(classnames, allow_duplicates=allow_duplicates)
    prompts = [one.replace("{}", name) for name in names for one in templates]
    if family.cleans_text:  # as in pretraining; SigLIP 2 loses points without it
        drop = str.maketrans("", "", string.punctuation)
        prompts = [" ".join(prompt.translate(drop).lower().split()) for prompt in prompts]
    return prompts


def tokenize(model: nn.Module, tokenizer: Any, prompts: Sequence[str], context: int) -> Tensor:
    """Return token ids (N, L) of the prompts, padded to the context length of the host.

    Raises:
        DataError: A prompt does not fit, or the tokenizer and the host disagree about its end.
    """
    encoded = tokenizer(list(prompts), truncation=False)["input_ids"]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > context:
            raise DataError(
                f"the prompt {prompt!r} has {len(ids)} tokens, the text tower takes {context}; "
                "shorten the class name or the template"
            )
    padded = tokenizer(
        list(prompts), padding="max_length", max_length=context, return_tensors="pt"
    )["input_ids"]
    if not isinstance(padded, Tensor):
        padded = torch.as_tensor(padded)
    vocabulary = vocabulary_size(model)
    if int(padded.max()) >= vocabulary:
        raise DataError(
            f"the tokenizer produced id {int(padded.max())}, the model knows {vocabulary} tokens; "
            "pass the tokenizer that belongs to the model"
        )
    if int(pooled_positions(model, padded).min()) < 0:
        raise DataError(
            f"the prompt {prompts[0]!r} has no end token the model knows; pass the tokenizer that "
            "belongs to the model"
        )
    return padded
