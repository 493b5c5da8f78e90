"""Does the score of an explanation tell it from another feature's?

    python -m experiments.language_models.smollm2 runs/smollm2-135m         # the language model, once
    python -m experiments.language_models.explanations train                # an SAE, then an hour of answers
    python -m experiments.language_models.explanations tables               # write the page's tables again

20 features of an SAE on the embedded language model are explained and scored by `vsae explain`. Then each explanation
is handed to the next feature and scored there. Two models answer, behind a small server in this process:

    smollm2-135m    SmolLM2-135M-Instruct, its answers held to the form that is asked for
    words           no language model: it explains by the two words that are marked most often, and says of a context
                    that the feature fires in it if it has one of them. It shows what the score can tell if answers
                    fit their question.
"""

import argparse
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch as t
from scipy.stats import wilcoxon
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import ExplainOptions
from dictionary_learning_ext.explain.endpoint import Endpoint
from dictionary_learning_ext.explain.runner import explain
from dictionary_learning_ext.features.explanations import (
    MISSING,
    Explanations,
    explanations_in,
    mean_of,
)
from dictionary_learning_ext.run_folder.files import EXPLANATIONS
from experiments import raw_results
from experiments.pages import table
from experiments.raw_results import RESULTS, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import FIRST_HOOK, FORMER_PRESET, train_missing

FEATURES = 20
RUNS = Path("runs/explanations")
SMOLLM2, WORDS = "smollm2-135m", "words"
_NEW_TOKENS = 32
_MARKED = re.compile(r"<<(.*?)>>")
_EXCERPT = re.compile(r"^\d+\. (.*)$", re.MULTILINE)
Answer = Callable[[list[dict[str, str]]], str]


# --- the two models


class SmolLM2:
    """SmolLM2 in bfloat16, greedily, its answers held to the form that is asked for, as a grammar does in vLLM and llama.cpp:
    free answers of a model this small don't have it. The beginning that a prompt shares with the one before is not
    read again.
    """

    def __init__(self, folder: str):
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=t.bfloat16).eval()
        self._cache: Any = DynamicCache()
        self._read: list[int] = []
        self._one_at_a_time = threading.Lock()

    def __call__(self, messages: list[dict[str, str]]) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        content = messages[-1]["content"]
        with self._one_at_a_time:
            if not content.startswith("Explanation:"):
                return "Explanation:" + self._line(text + "Explanation:")
            return self._list(text, len(_EXCERPT.findall(content)))

    def _line(self, text: str) -> str:
        """What follows, up to the line's end."""
        ids, n = self._ids(text), len(self._ids(text))
        while len(ids) < n + _NEW_TOKENS:
            token = int(self._logits(ids).argmax())
            if token == self._tokenizer.eos_token_id or "\n" in self._tokenizer.decode([token]):
                break
            ids.append(token)
        return self._tokenizer.decode(ids[n:])

    def _list(self, text: str, n: int) -> str:
        """The likeliest list of n numbers, chosen one by one."""
        zero, one = (self._ids(digit)[-1] for digit in "01")
        said: list[str] = []
        for _ in range(n):
            logits_V = self._logits(self._ids(text + "[" + "".join(f"{each}, " for each in said)))
            said.append("1" if logits_V[one] > logits_V[zero] else "0")
        return f"[{', '.join(said)}]"

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    @t.no_grad()
    def _logits(self, ids: list[int]) -> t.Tensor:
        """Of the next token, (V,)."""
        pairs = zip(ids[:-1], self._read, strict=False)
        n = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids) - 1, len(self._read))
        )
        if n < len(self._read):
            self._cache.crop(n - len(self._read))
        out = self._model(
            t.tensor([ids[n:]]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._read = list(ids)
        return out.logits[0, -1]


def words(messages: list[dict[str, str]]) -> str:
    content = messages[-1]["content"]
    if not content.startswith("Explanation:"):
        counts = Counter(each.strip().lower() for each in _MARKED.findall(content))
        return "Explanation: " + " | ".join(word for word, _ in counts.most_common(2))
    first, *_ = content.splitlines()
    wanted = first.removeprefix("Explanation: ").split(" | ")
    return str([int(any(w in each.lower() for w in wanted)) for each in _EXCERPT.findall(content)])


def serve(models: dict[str, Answer]) -> ThreadingHTTPServer:
    """A server that answers chat requests, in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = models[request["model"]](request["messages"])
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


# --- the run


def measure(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    start = preset("recommended", arguments.steps).updated(FORMER_PRESET, "the former preset")
    folder = train_missing(replace(start.run, hook=FIRST_HOOK), RUNS, {"vsae": start.sae})["vsae"]
    server = serve({SMOLLM2: SmolLM2(arguments.lm), WORDS: words})
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", timeout=600)
    for model in (WORDS, SMOLLM2):
        own = scored(folder, endpoint, model, RUNS / model)
        explained = [feature for feature, each in own.items() if each.text is not None]
        scored(folder, endpoint, model, shuffled(own, _moved(model)), explained)
        collect(raw_results.about(began) | {"steps": arguments.steps, "features": FEATURES})


def collect(settings: dict[str, Any]) -> None:
    """Write what has been answered until now."""
    rows = {}
    for model in (WORDS, SMOLLM2):
        paths = [RUNS / model / EXPLANATIONS, _moved(model) / EXPLANATIONS]
        own, other = (explanations_in(p) if p.exists() else Explanations() for p in paths)
        rows[model] = [row(own, other, feature) for feature in own]
    raw_results.write(RESULTS / "explanations.json", {"settings": settings, "rows": rows})


def _moved(model: str) -> Path:
    """The folder of the explanations that were handed on."""
    return RUNS / f"{model}_shuffled"


def scored(
    folder: Path, endpoint: Endpoint, model: str, out: Path, only: Sequence[int] = ()
) -> Explanations:
    """The explanations in `out`, those that are missing asked for."""
    path = out / EXPLANATIONS
    there = explanations_in(path) if path.exists() else Explanations()
    if len(there) >= (len(only) or FEATURES) and all(each.is_complete for each in there.values()):
        return there
    options = ExplainOptions(features=FEATURES, only=tuple(only), at_once=1)
    return explain(
        folder, endpoint, model, options=options, out=out, on_step=print, on_plan=print
    ).explanations


def shuffled(own: Explanations, out: Path) -> Path:
    """A folder in which each explanation is the next feature's, and not scored yet."""
    path = out / EXPLANATIONS
    if not path.exists():
        explained = [each for each in own.values() if each.text is not None]
        moved = zip(explained, [*explained[1:], explained[0]], strict=True)
        nothing = {
            each.feature: replace(
                each,
                text=other.text,
                said={kind: MISSING * len(said) for kind, said in each.said.items()},
            )
            for each, other in moved
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(own, features=nothing).write(path)
    return out


def row(own: Explanations, other: Explanations, feature: int) -> dict[str, Any]:
    def of(each: Explanations) -> dict[str, Any]:
        found = each.get(feature)
        if found is None:
            return {"text": None, "score": None, "said": {}}
        score = found.score
        return {"text": found.text, "score": score and score.value, "said": found.said}

    return {"feature": feature, "own": of(own), "shuffled": of(other)}


# --- the page


def tables(content: dict[str, Any]) -> list[str]:
    settings = content["settings"]
    rows = {model: _line(of_model) for model, of_model in content["rows"].items()}
    head = ["explained", "scored twice", "own", "shuffled", "difference", "p"]
    lines = [
        f"{about_line(settings)}: {settings['features']} features, `recommended`, {settings['steps']:,} steps. Means with "
        "their 95% intervals over features. p: Wilcoxon's signed-rank test, one-sided.",
        "",
        *table("model", rows, head),
    ]
    for model, of_model in content["rows"].items():
        shown = {
            str(each["feature"]): [_number(each["own"]), _number(each["shuffled"]), _quoted(each)]
            for each in of_model
        }
        lines += ["", f"{model}:", "", *table("feature", shown, ["own", "shuffled", "explanation"])]
    return lines


def _line(rows: list[dict[str, Any]]) -> list[str]:
    pairs = [(each["own"]["score"], each["shuffled"]["score"]) for each in rows]
    pairs = [(own, other) for own, other in pairs if own is not None and other is not None]
    differences = [own - other for own, other in pairs]
    explained = sum(each["own"]["text"] is not None for each in rows)
    if len(pairs) < 2:
        return [f"{explained} of {len(rows)}", str(len(pairs)), "", "", "", ""]
    half = mean_of([0.5 + each / 2 for each in differences])
    assert half is not None
    value, low, high = (2 * each - 1 for each in half)
    found: Any = wilcoxon(differences, alternative="greater") if any(differences) else None
    p = 1.0 if found is None else found.pvalue
    return [
        f"{explained} of {len(rows)}",
        str(len(pairs)),
        str(mean_of([own for own, _ in pairs])),
        str(mean_of([other for _, other in pairs])),
        f"{value:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{p:.2g}",
    ]


def _number(of: dict[str, Any]) -> str:
    return "" if of["score"] is None else f"{of['score']:.2f}"


def _quoted(each: dict[str, Any]) -> str:
    """As code, so that no mark of an explanation is the page's."""
    text = each["own"]["text"]
    return "" if text is None else f"`{text.replace('`', chr(39))}`"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lm", default="runs/smollm2-135m", help="SmolLM2's folder")
    parser.add_argument("--steps", type=int, default=1200)


STAGES = Stages(
    "language_models.explanations",
    {"train": measure},
    {"explanations": Page(tables)},
    options=options,
)

if __name__ == "__main__":
    STAGES.run()
