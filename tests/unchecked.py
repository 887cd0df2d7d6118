"""A module as users import it: without the shape checker of the tests, which would be first to complain."""

import importlib.util
import sys
from types import ModuleType


def unchecked(module: ModuleType) -> ModuleType:
    """A second copy of a module; the checker knows the first one only, by its name."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(
        f"unchecked_{module.__name__.replace('.', '_')}", module.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = copy
    spec.loader.exec_module(copy)
    return copy
