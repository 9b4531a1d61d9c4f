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
# # Your pictures, from the command line
#
# **What it shows.** A folder of pictures becomes an adapter: `train`, `evaluate`, `predict`, `info`. The folder is written by
# the demo, so that everything runs offline; with a folder of your own only the name changes.
#
# **How long it takes.** One to two minutes on two CPU cores.
#
# **What to expect.** `train` prints the accuracy of CLIP alone first, then that of the adapted model, and leaves adapter, model card and
# report in `out/`. The pictures are icons photographed in coloured light, on which the small embedded CLIP is poor at first.

# %%
import json
import os
import sys
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp())
# The commands below are those of the environment this notebook runs in.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# %% [markdown]
# ## The pictures
#
# 60 classes, one folder each. A folder's name is its class name; underscores become spaces in the prompts.

# %% language="bash"
# set -e
# mma-adapter demo --export icons
# ls icons | head -5

# %% [markdown]
# ## Train
#
# Half of each class's pictures become training pictures, of which 8 are drawn as shots; 20 % are kept for validation, 30 % for the
# test. `--model demo` is the embedded CLIP; otherwise name one on the Hub, such as `openai/clip-vit-base-patch16`, and leave
# template, scale and learning rate to the paper's recipe.

# %% language="bash"
# set -e
# mma-adapter train icons --model demo --shots 8 --template "an icon of a {}." \
#     --scale 0.05 --lr 0.005 -o out
# ls out out/report

# %% [markdown]
# `out/report/index.html` shows the same with pictures: the confusion matrix, and what changed for each class.
#
# ## Look at the adapter
#
# The base model is not needed for this.

# %% language="bash"
# mma-adapter info out

# %% [markdown]
# ## Classify pictures
#
# Pictures, folders or patterns; a table, `--csv` or `--json`.

# %% language="bash"
# set -e
# mma-adapter predict out icons/umbrella icons/compass --top 1 --csv > predictions.csv
# head -8 predictions.csv

# %% [markdown]
# ## Score it again
#
# `evaluate` divides the folder as `train` did, so the test pictures are the ones that training never saw.

# %% language="bash"
# set -e
# mma-adapter evaluate out icons --json > scores.json
# head -8 scores.json

# %% [markdown]
# ## Check it from Python

# %%
scores = json.loads(Path("scores.json").read_text())
report = json.loads(Path("out/report/metrics.json").read_text())
assert scores["adapted"]["correct"] == report["adapted"]["correct"]
assert scores["adapted"]["correct"] > scores["zero_shot"]["correct"]
