"""The transformers library: imported when first needed, and never allowed to fetch code."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

from encoders.errors import InputError, Problem

OLDEST = 5
PAPER = (
    "Wolf et al. (2020), Transformers: State-of-the-Art Natural Language Processing, "
    "doi:10.18653/v1/2020.emnlp-demos.6; the network's own paper is named by its model card"
)


def import_transformers() -> ModuleType:
    """Return the transformers library.

    Compiled kernels of the Hugging Face hub are code from elsewhere too: the library is told to
    use none of them (``USE_HUB_KERNELS=0``).

    Raises
    ------
    InputError
        It is not installed, or too old.
    """
    os.environ["USE_HUB_KERNELS"] = "0"
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        found = f"the package transformers cannot be imported ({error})"
        raise InputError(_absent(found)) from error
    version = str(library.__version__)
    if int(version.split(".")[0]) < OLDEST:
        raise InputError(_absent(f"transformers {version}"))
    # Where something else imported it before, it has read the variable already.
    kernels: Any = importlib.import_module("transformers.integrations.hub_kernels")
    if hasattr(kernels, "_kernels_enabled"):
        kernels._kernels_enabled = False
    return library


def _absent(found: str) -> Problem:
    return Problem(
        "extra-missing",
        "encoder huggingface",
        found,
        f"transformers {OLDEST}.0 or newer",
        'pip install "genebold[huggingface]"',
    )
