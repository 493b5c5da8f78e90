"""HTML pages that contain everything they need and run only the package's own scripts.

The Content-Security-Policy of each page names its scripts by their hashes. So a script in a corpus's text would not run even
if it weren't escaped.
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
        scripts: files in templates/ that the page runs, in this order, after plotly.
        values: of the template's variables.
    """
    script = "".join(_TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in scripts)
    plotly = get_plotlyjs() if scripts else ""
    script = f'\n"use strict";\n{script}' if scripts else ""
    allowed = " ".join(f"'sha256-{_sha256(source)}'" for source in (script, plotly) if source)
    return rendered(
        "report",
        template,
        script=Markup(script),
        plotly=packed(plotly),
        script_source=Markup(allowed or "'none'"),
        **values,
    )


def as_data(content: Any) -> str:
    """Content as packed JSON, which no text can break out of; read by `unpack` in dom.js."""
    return packed(json.dumps(content, separators=(",", ":"), allow_nan=False))


def packed(text: str) -> str:
    """A text, compressed and base64-encoded. The result depends on the text alone."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _sha256(script: str) -> str:
    """The hash of a script, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
