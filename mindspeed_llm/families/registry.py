"""Find all model families: the `FAMILY` of each module in this package."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from mindspeed_llm.families.family import ModelFamily

# In MindSpeed-LLM `--model-type-hf llama2` stands for all models of this kind, including Qwen2.5.
ANY_FAMILY = "llama2"


@functools.cache
def families() -> tuple[ModelFamily, ...]:
    """Return all model families, in the alphabetical order of their modules.

    Raises:
        ValueError: two families have the same model_type.
    """
    # Search the package instead of listing the modules, so that a new family needs no change in any other file.
    package = importlib.import_module(__name__.rpartition(".")[0])
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    records = tuple(module.FAMILY for module in modules if isinstance(getattr(module, "FAMILY", None), ModelFamily))
    if len({family.model_type for family in records}) < len(records):
        raise ValueError(f"two families have the same model_type: {[family.model_type for family in records]}")
    return records


def find_family(model_type: object) -> ModelFamily | None:
    """Return the family whose models have this `model_type` in config.json; None if there is none."""
    return next((family for family in families() if family.model_type == model_type), None)


def model_type_names() -> tuple[str, ...]:
    """Return the allowed values of `--model-type-hf`."""
    return tuple(dict.fromkeys([ANY_FAMILY, *(name for family in families() for name in family.names)]))


def is_family_name(family: ModelFamily, name: str) -> bool:
    """Return whether a value of `--model-type-hf` includes this family."""
    return name == ANY_FAMILY or name in family.names
