"""Render self-contained HTML pages and SVG pictures from templates, with all text escaped, and write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from mindspeed_llm.storage.atomic_write import write_atomically


def render_html(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Render a template. The filter `commas` writes a number with separators of thousands.

    Args:
        template: the file.
        filters: further filters by name.
        values: values of the template.
    """
    # autoescape: text of data, runs and file names may contain markup or scripts.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({"commas": lambda number: f"{number:,}", **filters})
    return environment.get_template(template.name).render(**values)


def write_html(path: Path, page: str) -> None:
    """Write a page atomically.

    Args:
        path: output file.
        page: content.

    Raises:
        OSError: the file cannot be written.
    """
    # "replace": text of data may contain half of a surrogate pair, which UTF-8 cannot encode.
    write_atomically(path, page.encode("utf-8", "replace"))
