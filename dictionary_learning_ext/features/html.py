"""HTML from the package's templates. All values are escaped."""

from typing import Any

import jinja2


def rendered(part: str, template: str, **values: Any) -> str:
    """The HTML of a template in the sub-package `part`. Raises jinja2.UndefinedError if a value is missing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning_ext", f"{part}/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
