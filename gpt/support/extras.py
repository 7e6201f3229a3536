"""Which parts of the package need a library that not everyone has installed? A missing one is named in one line."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtra(ModuleNotFoundError):
    """A library of an optional extra is not installed; the message says which, and how to install it."""


def needs(extra: str, module: str) -> None:
    """Raise MissingExtra unless `module`, which that extra installs, is there. It is not imported."""
    if find_spec(module) is None:
        raise MissingExtra(
            f'{module} is not installed: pip install {module}, or this package with its extra "{extra}"', name=module
        )
