"""``--model MODULE:CLASS`` (and ``--student``): the user's own classes, for what a file only names. Theirs is the only code that runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from distillrl.errors import Misconfigured, nearest


def find(word: str, option: str = "--model") -> Any:
    """The object that ``module:name`` names, looked for in the working folder too; raises Misconfigured."""
    module_name, colon, name = word.partition(":")
    if not colon or not module_name or not name:
        raise Misconfigured(f"{option} {word!r}: module:Class is right, such as my_project.nets:Agent")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise Misconfigured(f"{option} {word!r}: {error}") from None
    if not hasattr(module, name):
        raise Misconfigured(f"{option} {word!r}: {module_name} has no {name!r}{nearest(name, dir(module))}")
    return getattr(module, name)


def sb3_classes(words: str | None) -> tuple[Any, Any]:
    """(activation, features extractor) of ``--model``, each None where not given; two classes are separated by a comma.

    An extractor is a class that says its ``features_dim``, as SB3's BaseFeaturesExtractor; an activation is any other
    nn.Module. Raises Misconfigured.
    """
    activation = extractor = None
    for word in (words or "").split(","):
        if not word.strip():
            continue
        made = find(word.strip())
        if hasattr(made, "features_dim"):
            extractor = made
        elif isinstance(made, type) and issubclass(made, nn.Module):
            activation = made
        else:
            raise Misconfigured(f"--model {word!r}: it is neither an activation (an nn.Module) nor a features extractor (with features_dim)")
    return activation, extractor
