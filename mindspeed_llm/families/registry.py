"""Find the records of all families: the `FAMILY` of each module of this package."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from mindspeed_llm.families.family import ModelFamily

# MindSpeed-LLM calls every model of this kind llama2, Qwen2.5 included.
ANY_FAMILY = "llama2"


@functools.cache
def families() -> tuple[ModelFamily, ...]:
    """Return the records of all families, in the alphabetical order of their modules.

    Raises:
        ValueError: two records have the same model_type.
    """
    package = importlib.import_module(__name__.rpartition(".")[0])
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    found = tuple(module.FAMILY for module in modules if isinstance(getattr(module, "FAMILY", None), ModelFamily))
    if len({family.model_type for family in found}) < len(found):
        raise ValueError(f"two families with one model_type: {[family.model_type for family in found]}")
    return found


def find_family(model_type: object) -> ModelFamily | None:
    """Return the family with this model_type of config.json; None if there is none."""
    return next((family for family in families() if family.model_type == model_type), None)


def model_type_names() -> tuple[str, ...]:
    """Return the values of --model-type-hf."""
    return tuple(dict.fromkeys([ANY_FAMILY, *(name for family in families() for name in family.names)]))


def is_family_name(family: ModelFamily, name: str) -> bool:
    """Whether a value of --model-type-hf means this family."""
    return name == ANY_FAMILY or name in family.names
