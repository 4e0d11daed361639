"""The optional packages of the project: which extra of the distribution brings a module."""

from __future__ import annotations

EXTRAS = {
    "run": (
        *("accelerate", "av", "diffusers", "ftfy", "jaxtyping", "open_clip", "peft", "safetensors"),
        *("torch", "torchvision", "transformers"),
    ),
    "slurm": ("submitit",),
    "test": ("beartype", "hypothesis", "pytest"),
    "docs": ("latex2mathml", "mkdocs"),
}
"""Extra to the modules that it brings."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """One sentence on the extra to install, if the module is one of `EXTRAS`; None for any other module."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None:
        return None
    return f"the package {module!r} is missing: install it with `pip install 'grpo-video-bench[{extra}]'`."
