"""Seconds to import the library, against `import torch`, and to answer `mma-adapter --help`.

    python benchmarks/startup.py

Fresh processes, in turn. Writes `results/startup.json`.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from machine import alternate, describe_machine, summary, write

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import mma_adapter": [sys.executable, "-c", "import mma_adapter"],
    "from mma_adapter import inject_mma": [
        sys.executable,
        "-c",
        "from mma_adapter import inject_mma",
    ],
    "mma-adapter --help": [str(Path(sys.executable).parent / "mma-adapter"), "--help"],
}


def main() -> None:
    runs = {
        name: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        for name, command in COMMANDS.items()
    }
    seconds = {name: summary(values) for name, values in alternate(runs, 7, "cpu").items()}
    payload = {
        **describe_machine("cpu"),
        "command": "python benchmarks/startup.py",
        "commands": seconds,
        # Names are imported when they are first asked for: this is what a user waits for.
        "import_ratio": seconds["from mma_adapter import inject_mma"]["seconds"]
        / seconds["import torch"]["seconds"],
    }
    print(write("startup", payload).read_text())


if __name__ == "__main__":
    main()
