"""The committed pages of experiments are what their committed raw results give."""

import json

import pytest
import selection_churn
from timing import RESULTS


@pytest.mark.parametrize(("name", "page"), [("selection_churn", selection_churn.page)])
def test_pages_are_made_from_the_raw_results(name, page):
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    lines = (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    assert page(content) == lines
    content["rows"][-1]["fve"] += 0.5
    assert page(content) != lines
