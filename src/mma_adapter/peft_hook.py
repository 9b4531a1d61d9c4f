"""Load `peft_bridge` as soon as PEFT has been imported, by whomever, and not before.

PEFT takes seconds to import, and transformers imports it by itself when it is handed an adapter
folder. So `import mma_adapter` only leaves a watcher in `sys.meta_path`, which finds PEFT as Python
would and has the bridge loaded once PEFT's own code has run.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_peft() -> None:
    """Make `"MMA"` a PEFT method: now if PEFT is imported already, else when it is."""
    if sys.modules.get("peft"):
        _load_bridge()
    elif not any(isinstance(finder, _PeftWatcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftWatcher())


class _PeftWatcher(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        # Looking is not importing: transformers only asks whether PEFT is there.
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_then_load_bridge(module: ModuleType) -> None:
                run(module)
                _load_bridge()

            spec.loader.exec_module = run_then_load_bridge
        return spec


def _load_bridge() -> None:
    peft = sys.modules["peft"]
    if hasattr(getattr(peft, "PeftType", None), "MMA"):  # PEFT has learned it by itself
        return
    try:
        importlib.import_module(".peft_bridge", __package__)
    except Exception as error:  # PEFT's internals move, and nobody's `import peft` may fail on us
        warnings.warn(
            f"PEFT cannot load MMA adapters here ({error}); inject_mma and load_mma do not need it",
            stacklevel=2,
        )
