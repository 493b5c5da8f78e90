"""HTML pages that hold everything they need and run only the package's own scripts.

Each page has a Content-Security-Policy that names its scripts by their hashes. So a script that text brings into a
page would not run, even if it were not escaped.
"""

import base64
import gzip
import hashlib
import json
from importlib.resources import files
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ..features.html import rendered

_TEMPLATES = files("dictionary_learning_ext.report") / "templates"


def page_html(template: str, scripts: tuple[str, ...] = (), **values: Any) -> str:
    """The HTML of a template in templates/.

    Arguments:
        scripts: files in templates/ that the page runs, one after the other. Such a page has plotly, too.
        values: what the template shows.
    """
    script = "".join(_TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in scripts)
    plotly = get_plotlyjs() if scripts else ""
    script = f'\n"use strict";\n{script}' if scripts else ""
    allowed = " ".join(f"'sha256-{_sha256(each)}'" for each in (script, plotly) if each)
    return rendered(
        "report",
        template,
        script=Markup(script),
        plotly=packed(plotly),
        script_source=Markup(allowed or "'none'"),
        **values,
    )


def as_data(content: Any) -> str:
    """Content as JSON that no text in it can break out of, for `unpack` of dom.js."""
    return packed(json.dumps(content, separators=(",", ":"), allow_nan=False))


def packed(text: str) -> str:
    """Compressed and base64-encoded; the same text always gives the same."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _sha256(script: str) -> str:
    """The hash of a script, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
