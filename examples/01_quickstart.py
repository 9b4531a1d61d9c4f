# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first adapter
#
# **What it shows.** Putting a Multi-Modal Adapter on a CLIP, training it in a loop of your own and with `fit`, saving and
# loading it, switching it off, sliding between CLIP and the adapted model, and classifying a picture.
#
# **How long it takes.** Less than a minute on two CPU cores, offline: model and pictures come with the package.
#
# **What to expect.** The small embedded CLIP knows flat icons. Here it meets icons photographed in coloured light, of which it
# recognises few. After training on 16 pictures of each of ten classes it recognises clearly more, also of pictures that were
# not trained on. With OpenAI's CLIP the calls are the same; only the first cell changes.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from mma_adapter import (
    FewShotClassifier,
    TrainConfig,
    disable_mma,
    fit,
    inject_mma,
    load_mma,
    print_trainable_parameters,
    remove_mma,
)
from mma_adapter.data import from_processor, open_image
from mma_adapter.demo import load_icon_clip, photographed_objects
from mma_adapter.evaluation import evaluate

clip, tokenizer, image_processor = load_icon_clip()
train_transform, test_transform = from_processor(image_processor)

# %% [markdown]
# ## The pictures
#
# Ten classes of everyday objects. A `Sample` is a picture with its label; your own folder becomes the same with
# `mma_adapter.data.load_samples("photos/")`.

# %%
data = photographed_objects(classes="base")
classnames = data.classnames[:10]
train = [sample for sample in data.train if sample.label < 10]
test = [sample for sample in data.test if sample.label < 10]
print(len(train), "training pictures,", len(test), "test pictures")

figure, axes = plt.subplots(1, 6, figsize=(9, 1.9))
for axis, sample in zip(axes, test[::12], strict=False):
    axis.imshow(open_image(sample))
    axis.set_title(sample.classname, fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## Inject
#
# `inject_mma` changes the model in place: small branches beside layers 5 to 12 of both towers, everything else frozen. `scale` is
# the weight of the branches; this small model wants more than the paper's 0.001.

# %%
model = inject_mma(clip, start_layer=5, scale=0.05, seed=1)
print_trainable_parameters(model)
model.mma

# %% [markdown]
# A `FewShotClassifier` goes from pixels to logits over the class names. Before training we switch the adapter off and note
# what CLIP alone can do.

# %%
classifier = FewShotClassifier(model, tokenizer, classnames, data.template)
with disable_mma(model):
    zero_shot = evaluate(classifier, test, test_transform)
print(f"CLIP alone: {zero_shot.accuracy_pct:.1f} % of {zero_shot.total} test pictures")

# %% [markdown]
# ## Train in your own loop
#
# Nothing special is needed: an optimiser over `model.mma.parameters()`, and the classifier's `loss`.

# %%
weights = model.mma.parameters()
optimizer = torch.optim.SGD(weights, lr=0.005, momentum=0.9, weight_decay=5e-4)
generator = torch.Generator().manual_seed(1)
pictures = [open_image(sample) for sample in train]
labels = torch.tensor([sample.label for sample in train])

for epoch in range(3):
    losses = []
    for batch in torch.randperm(len(train), generator=generator).split(16):
        crops = [train_transform(pictures[i], generator) for i in batch]
        pixel_values = torch.stack(crops)  # (B, 3, 40, 40)
        loss = classifier(pixel_values, labels=labels[batch]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

# %% [markdown]
# ## Or with `fit`
#
# `fit` brings the schedule, decoded pictures in memory, checkpoints and resuming (`output_dir=`), bf16 where the device has it, and
# scores before and after. It starts here from a fresh adapter.

# %%
remove_mma(model)
inject_mma(model, start_layer=5, scale=0.05, seed=1)
config = TrainConfig(lr=0.005, epochs=10, template=data.template)
result = fit(
    model,
    train,
    classnames,
    config,
    test,
    tokenizer=tokenizer,
    image_processor=image_processor,
    callbacks=(),
)
print(f"test accuracy {result.zero_shot_eval.accuracy_pct:.1f} -> {result.eval.accuracy_pct:.1f} %")
assert result.eval.accuracy_pct > result.zero_shot_eval.accuracy_pct

# %% [markdown]
# ## Save and load
#
# The folder holds the adapter alone; the model it belongs to is named in its config. `load_mma("you/pets-mma")` loads that model as well;
# here the adapter goes onto a fresh copy in hand. Its weights are equal bit for bit.

# %%
folder = Path(tempfile.mkdtemp()) / "objects-mma"
model.mma.save_pretrained(folder)
for path in sorted(folder.iterdir()):
    print(f"{path.name:28} {path.stat().st_size:>9,} bytes")

fresh, _, _ = load_icon_clip()
loaded = load_mma(folder, model=fresh)
again = FewShotClassifier(loaded, tokenizer, loaded.mma.config.classnames, data.template).eval()
saved, read = model.mma.state_dict(), loaded.mma.state_dict()
assert saved.keys() == read.keys()
assert all(torch.equal(saved[key], read[key]) for key in saved)

# %% [markdown]
# ## Slide between CLIP and the adapted model
#
# `scale` can be changed at any time. 0 is CLIP itself.

# %%
scales = [0, 0.01, 0.025, 0.05, 0.1, 0.2]
accuracies = []
for scale in scales:
    loaded.mma.scale = scale
    accuracies.append(evaluate(again, test, test_transform).accuracy_pct)
loaded.mma.scale = 0.05
assert accuracies[0] == zero_shot.accuracy_pct  # not nearly: exactly

figure, axis = plt.subplots(figsize=(4.5, 2.6))
axis.plot(scales, accuracies, marker="o")
axis.axvline(0.05, color="0.7", linestyle=":")
axis.set(xlabel="scale (trained at 0.05)", ylabel="test accuracy, %", ylim=(0, None))
figure.tight_layout()

# %% [markdown]
# ## Classify a picture

# %%
for sample in test[5::30]:
    with torch.no_grad():
        logits = again(test_transform(open_image(sample))[None]).logits[0]  # (K,)
    top = logits.softmax(0).topk(2)
    guesses = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    answer = ", ".join(f"{classnames[label]} {100 * p:.0f} %" for p, label in guesses)
    print(f"{sample.classname:15} -> {answer}")

# %% [markdown]
# Next: `02_your_pictures.py` does the same from the command line, with a folder of pictures.
