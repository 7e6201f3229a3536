"""GPT-2, worked out: the package behind the guides and notebooks. One module a concept; public.py lists their names.

PyTorch takes seconds to load, so the names are imported when the first of them is used: --help need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt.public import *


def __getattr__(name: str) -> Any:
    if not name.startswith("__"):
        names = vars(import_module("gpt.public")) | globals()  # the modules that it imports are now among ours
        if name in names:
            return names[name]
    raise AttributeError(f"module 'gpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *vars(import_module("gpt.public"))})
