"""Filling in the templates of the pages."""

from typing import Any

import jinja2

from ..run_folder.files import PAGE_MARK


def rendered(template: str, **values: Any) -> str:
    """The HTML of a template with its values. Raises jinja2.UndefinedError if one is missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning_ext.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values, page_mark=PAGE_MARK)
