"""Small runs and their reports, which the report's tests and its browser tests share."""

import base64
import gzip
import json
import re
import shlex
import shutil

import pytest
import torch as t
import transformers
from kept import kept

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.evaluation.tables import LONGEST_NAME

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "{{ 7 * 7 }}",
    "a\u202ecod.exe",
    "b\u0007\u0000bell",
    "x" * 30_000,  # longer documents are tokenised in pieces
)
VSAE = ["--noise-to-signal", "0.1"]
QUICK = ["--tokens", "600", "--split", "train"]


def train(model, text, folder, *flags):
    words = (
        f"--model {model} --data {text} --steps 30 --batch-size 64 --n-ctxs 16 --ctx-len 32 "
        "--dict-size 32 --k 4 --lr 2e-3 --eval-tokens 200 --eval-documents 4 --log-steps 10 "
        "--hook blocks.0.hook_resid_post"
    )
    assert main(["train", *shlex.split(words), "--save-dir", str(folder), *flags]) == 0
    return folder


@pytest.fixture(scope="session")
def runs(tiny_lm_dir, text, tmp_path_factory):
    """Two small runs, whose folders the tests leave as they are. One was measured during training."""

    def make(folder):
        train(tiny_lm_dir, text, folder / "vsae", "--eval-every", "20", *VSAE)
        train(tiny_lm_dir, text, folder / "top_k", "--architecture", "top_k")

    folder = shutil.copytree(kept("report_runs", make), tmp_path_factory.mktemp("report") / "runs")
    return folder / "vsae", folder / "top_k"


@pytest.fixture(scope="session")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "both.html"
    command = ["report", str(runs[0]), "--against", str(runs[1]), "--out", str(out), *QUICK]
    assert main(command) == 0
    return out


@pytest.fixture(scope="session")
def seeds(tiny_lm_dir, text, tmp_path_factory):
    """Three seeds of one small SAE, each with a data seed of its own."""

    def make(folder):
        for n in range(3):
            each = f"--seed {n} --data-seed {n}".split()
            train(tiny_lm_dir, text, folder / f"seed{n}", *each, *VSAE)

    folder = shutil.copytree(kept("seeds", make), tmp_path_factory.mktemp("report") / "seeds")
    return [folder / f"seed{n}" for n in range(3)]


@pytest.fixture(scope="session")
def seeded_report(seeds, runs, tmp_path_factory):
    """A report of the first seed, with scores from the others, against another SAE."""
    out = tmp_path_factory.mktemp("seeded") / "seeded.html"
    others = ["--against", str(runs[1]), "--seeds", *map(str, seeds[1:])]
    assert main(["report", str(seeds[0]), *others, "--out", str(out), *QUICK]) == 0
    return out


@pytest.fixture(scope="session")
def long_names(runs, tmp_path_factory):
    """A folder of six SAEs: three with names of 40 characters that somebody chose, one of them without
    a place to break it, and three with automatic ones, which are called by their settings."""
    folder = tmp_path_factory.mktemp("long") / "runs"
    names = [
        "a_name_that_somebody_chose_for_an_sae_01",
        "x" * LONGEST_NAME,
        "another-one-of-the-longest-legal-names-2",
        *(
            f"vsae_k4_F32_seed{i}_00aa1{i}".rjust(LONGEST_NAME, "v")[-LONGEST_NAME:]
            for i in range(3)
        ),
    ]
    for number, name in enumerate(names):
        assert len(name) == LONGEST_NAME
        copy = shutil.copytree(runs[0], folder / name)
        config = json.loads((copy / "config.json").read_text())
        changes = {"seed": number, "data_seed": number, "lr": 0.00123 * (1 + number // 4)}
        config["run"]["settings"] |= changes | {"beta": 0.0123 if number < 4 else 0.123}
        (copy / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def long_report(long_names, tmp_path_factory):
    """A report of these six, with the second as a seed of the first."""
    out = tmp_path_factory.mktemp("long_report") / "long.html"
    first, second, *others = map(str, sorted(long_names.iterdir()))
    beside = ["--against", *others, "--seeds", second, "--out", str(out)]
    assert main(["report", first, *beside, *QUICK]) == 0
    return out


@pytest.fixture(scope="session")
def hostile_run(tiny_lm_dir, tmp_path_factory):
    """A run of a model whose tokens are made to break a page, in a folder whose name is, too."""
    folder = tmp_path_factory.mktemp("hostile")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_lm_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_lm_dir)
    tokenizer.add_tokens(list(HOSTILE))
    t.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    words = [word for word in (*HOSTILE, " cat", " dog", " sat") for _ in range(3)]
    generator = t.Generator().manual_seed(0)
    documents = [
        "".join(words[i] for i in t.randint(len(words), (8,), generator=generator).tolist())
        for _ in range(400)
    ]
    texts = folder / "text.jsonl"
    texts.write_text("\n".join(json.dumps({"text": one}) for one in documents), encoding="utf-8")
    return train(folder / "lm", texts, folder / "<b>bold & 'quoted'", "--eval-tokens", "0")


@pytest.fixture(scope="session")
def hostile_report(hostile_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile_report") / "report.html"
    assert main(["report", str(hostile_run), "--out", str(out), *QUICK]) == 0
    return out


def data_of(page):
    """The data in a page's HTML."""
    packed = re.search(r'id="data">([^<]*)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))
