"""What is wrong with files, configs, texts, models and disks is said in one line, and nothing that
was written is lost."""

import json
import os
import pickle
import re
import resource
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch as t
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.run_config import TrainConfig
from dictionary_learning_ext.errors import CheckpointError, UserError
from dictionary_learning_ext.run_folder.reading import load_config
from dictionary_learning_ext.run_folder.weights import load_dictionary


@pytest.fixture(scope="session")
def flags(tiny_lm_dir, text):
    """Of a run of a second."""
    run = f"--model={tiny_lm_dir} --data={text} --steps=12 --batch-size=32 --n-ctxs=8 --ctx-len=32"
    return f"{run} --dict-size=32 --k=4 --eval-tokens=0 --save-every=5".split()


@pytest.fixture(scope="session")
def trained(flags, tmp_path_factory):
    """Run folders of a vSAE and a TopK SAE."""
    base = tmp_path_factory.mktemp("trained")
    assert main(["train", *flags, f"--save-dir={base / 'vsae'}"]) == 0
    topk = ["--architecture=top_k", f"--save-dir={base / 'top_k'}"]
    assert main(["train", *flags, *topk]) == 0
    return base


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained / "vsae", tmp_path / "vsae")


def content(folder):
    return {
        path: sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def refused(arguments, capsys):
    """The one line that a command ends with, which must have failed."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("vsae: ")
    assert last.isprintable()
    return last


# --- ae.pt


def tensors(change):
    """Changes the state dict of an ae.pt."""

    def damage(path):
        state = t.load(path, weights_only=True)
        t.save(change(state), path)

    return damage


def put(**values):
    return tensors(lambda state: state | {n.replace("__", "."): v for n, v in values.items()})


def flip(place):
    def damage(path):
        raw = bytearray(path.read_bytes())
        raw[int(place * len(raw))] ^= 0x10
        path.write_bytes(raw)

    return damage


class Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def executes_zipped(path):
    t.save({"encoder.weight": Executes()}, path)


DAMAGED_WEIGHTS = {
    "empty": (
        lambda path: path.write_bytes(b""),
        "incomplete or damaged VariationalTopKAutoEncoder",
    ),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "incomplete or damaged"),
    "short of a byte": (
        lambda path: os.truncate(path, path.stat().st_size - 1),
        "incomplete or damaged",
    ),
    "a flipped bit among the weights": (flip(0.5), "checksum"),
    "noise": (lambda path: path.write_bytes(os.urandom(5000)), "incomplete or damaged"),
    "a pickle that runs code": (
        lambda p: p.write_bytes(pickle.dumps(Executes())),
        "incomplete or damaged",
    ),
    "a zipped pickle that runs code": (executes_zipped, "incomplete or damaged"),
    "a list": (
        lambda path: t.save([t.zeros(3)], path),
        "expected a state dict of .*, but it holds a list",
    ),
    "no tensors": (put(note="hello"), "but it holds a dict of other values"),
    "a vector of another length": (put(b_dec=t.zeros(17)), r"b_dec"),
    "a scalar for a vector": (put(encoder__bias=t.tensor(0.0)), r"encoder\.bias"),
    "a transposed matrix": (
        tensors(lambda s: s | {"decoder.weight": s["decoder.weight"].t().contiguous()}),
        r"decoder\.weight",
    ),
    "a matrix of three dimensions": (put(encoder__weight=t.zeros(2, 32, 16)), r"encoder\.weight"),
    "another dictionary size": (
        put(
            encoder__weight=t.zeros(64, 16),
            encoder__bias=t.zeros(64),
            decoder__weight=t.zeros(16, 64),
        ),
        r"encoder\.weight is \(64, 16\), so dict_size=64, but config\.json says 32",
    ),
    "whole numbers": (
        tensors(lambda s: s | {"encoder.weight": s["encoder.weight"].long()}),
        r"encoder\.weight is torch\.int64, expected torch\.float32",
    ),
    "complex numbers": (
        tensors(lambda s: s | {"b_dec": s["b_dec"].to(t.complex64)}),
        r"b_dec is torch\.complex64",
    ),
    "a missing tensor": (tensors(lambda s: {n: v for n, v in s.items() if n != "b_dec"}), r"b_dec"),
    "a tensor too many": (put(extra=t.zeros(2)), "extra"),
    "NaN": (put(b_dec=t.full((16,), t.nan)), "b_dec has NaN or infinite values"),
    "k of 0": (put(k=t.tensor(0)), "k"),
    "k beyond the dictionary": (put(k=t.tensor(33)), "k"),
    "another k": (put(k=t.tensor(5)), "k"),
    "a posterior that is none": (put(posterior_code=t.tensor(9)), "not a state dict of"),
    "another class": (
        lambda path: shutil.copy(path.parents[1] / "top_k.pt", path),
        "expected a VariationalTopKAutoEncoder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_WEIGHTS)
def test_a_damaged_ae_pt(damage, folder, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained / "top_k" / "ae.pt", tmp_path / "top_k.pt")
    change, message = DAMAGED_WEIGHTS[damage]
    change(folder / "ae.pt")
    before = content(folder)
    line = refused(["eval", folder], capsys)
    assert re.search(message, line), line
    assert "ae.pt" in line
    assert content(folder) == before
    assert not (tmp_path / "executed").exists()


# --- config.json


def setting(**changes):
    """Changes run.settings."""

    def damage(path):
        config = json.loads(path.read_text())
        config["run"]["settings"] |= changes
        path.write_text(json.dumps(config))

    return damage


def trainer(**changes):
    def damage(path):
        config = json.loads(path.read_text())
        config["trainer"] |= changes
        path.write_text(json.dumps(config))

    return damage


DAMAGED_CONFIGS = {
    "missing": (lambda path: path.unlink(), "expected a file config.json"),
    "empty": (lambda path: path.write_text(""), "not valid JSON"),
    "broken off": (lambda path: path.write_text('{"trainer": {'), "not valid JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "without end": (lambda path: path.write_text("[" * 100_000), "RecursionError"),
    "a list": (lambda path: path.write_text("[1]"), r"trainer\.dict_class"),
    "no run but a number": (
        lambda path: path.write_text('{"trainer": {"dict_class": "AutoEncoder"}, "run": 3}'),
        "run is 3, expected an object",
    ),
    "a class that is none": (trainer(dict_class="os.system"), "'os.system' is unknown"),
    "a class that is no text": (trainer(dict_class=["x"]), "is unknown"),
    "a size in words": (trainer(dict_size="many"), "trainer.dict_size is 'many'"),
    "a size beyond reason": (trainer(activation_dim=10**30), "trainer.activation_dim is 1000"),
    "another width": (trainer(activation_dim=8), "so activation_dim=16, but config.json says 8"),
    "an unknown setting": (setting(betta=1), "unknown setting 'betta'; did you mean 'beta'"),
    "a command for a number": (setting(k="$(touch executed)"), r"k='\$\(touch executed\)'"),
    "a model that is nowhere": (setting(model="../../nowhere"), r"'\.\./\.\./nowhere'"),
    "a hook that is none": (setting(hook="blocks.0.__class__"), r"blocks\.0\.__class__"),
    "a text with an escape": (setting(data="./\x1b[31m.txt"), r"\\x1b\[31m"),
    "a width of no model": (setting(model="embedded"), "16.*128|trained on"),
}


@pytest.mark.parametrize("damage", DAMAGED_CONFIGS)
def test_a_damaged_config(damage, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    change, message = DAMAGED_CONFIGS[damage]
    change(folder / "config.json")
    before = content(folder)
    line = refused(["eval", folder], capsys)
    assert re.search(message, line), line
    assert content(folder) == before
    assert not (tmp_path / "executed").exists()


HOSTILE_SETTINGS = {
    "a path for an architecture": ({"architecture": "../../../tmp/x"}, "expected one of"),
    "a path for a posterior": ({"posterior": "../x"}, "expected one of"),
    "a path for a schedule": ({"kl_schedule": "/etc/passwd"}, "kl_schedule='/etc/passwd'"),
    "NaN": ({"lr": float("nan")}, "lr=nan"),
    "minus infinity": ({"beta": float("-inf")}, "beta=-inf"),
    "true for a number": ({"k": True}, "k=True"),
    "a list for a number": ({"steps": [1]}, "steps="),
    "no steps": ({"steps": 0}, "steps=0"),
    "an interval in fortnights": ({"save_every": "2 fortnights"}, "save_every='2 fortnights'"),
    "a device that is none": ({"device": "cuda:0; rm"}, "device 'cuda:0; rm'"),
}


@pytest.mark.parametrize("case", HOSTILE_SETTINGS)
def test_hostile_settings_start_no_run(case, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes, message = HOSTILE_SETTINGS[case]
    setting(**changes)(folder / "config.json")
    before = content(tmp_path)
    line = refused(["train", f"--config={folder}"], capsys)
    assert re.search(message, line), line
    assert content(tmp_path) == before


# --- texts and language models


def written(name, raw):
    def make(folder):
        path = folder / name
        path.write_bytes(raw)
        return path

    return make


WORDS = b"the cat sat on the mat. " * 4000
BAD_TEXTS = {
    "invalid UTF-8": (written("a.txt", b"the cat \xff\xfe sat" + WORDS), "UTF-8"),
    "null bytes": (written("a.txt", WORDS.replace(b"cat", b"c\x00t")), "holds a null byte"),
    "only empty lines": (written("a.txt", b"\n" * 10_000), "holds no text"),
    "too short": (written("a.txt", b"the cat"), "ended|no text"),
    "lines that are no JSON": (written("a.jsonl", b'{"text": "a"}\nnothing\n'), "line 2"),
    "rows without text": (written("a.jsonl", b'{"body": "a"}\n'), "text"),
    "a text that is a number": (written("a.jsonl", b'{"text": 3}\n'), "text"),
    "no parquet": (written("a.parquet", WORDS), "parquet"),
    "no zstandard": (written("a.jsonl.zst", WORDS), "zst"),
    "a file of another kind": (written("a.exe", WORDS), r"\.txt"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_bad_text(case, flags, tmp_path, capsys):
    make, message = BAD_TEXTS[case]
    given_text = f"--data={make(tmp_path)}"
    line = refused(["train", *flags, given_text, f"--save-dir={tmp_path / 'run'}"], capsys)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "raw",
    [WORDS.replace(b". ", b"\n\n\n\n"), WORDS * 110],
    ids=["empty lines", "a line of 10 MB"],
)
def test_an_odd_text_that_can_be_read(raw, flags, tmp_path):
    path = written("a.txt", raw)(tmp_path)
    assert main(["train", *flags, f"--data={path}", f"--save-dir={tmp_path / 'run'}"]) == 0


def test_damaged_language_models(tiny_lm_dir, flags, tmp_path, capsys):
    for name, raw, message in (
        ("config.json", b"{", "can't be loaded"),
        ("model.safetensors", b"x" * 100, "can't be loaded"),
    ):
        lm = shutil.copytree(tiny_lm_dir, tmp_path / name)
        (lm / name).write_bytes(raw)
        arguments = ["train", *flags, f"--model={lm}", f"--save-dir={tmp_path / 'run'}"]
        line = refused(arguments, capsys)
        assert message in line, line
        assert not (tmp_path / "run").exists()


# --- disks


@pytest.fixture
def file_size_limit():
    """Sets how large a file may become; gives the former limit back."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_limit_hit_in_the_middle_of_a_resume_point(flags, folder, capsys, file_size_limit):
    """Of the first run's files all stay; of the second, which may not write so much, none counts."""
    other = folder.parent / "other"
    before = content(folder)
    capsys.readouterr()
    file_size_limit(8000)
    assert main(["train", *flags, f"--save-dir={other}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    file_size_limit(resource.RLIM_INFINITY)
    assert re.search(r"can't be written \(.*\): free some space", error), error
    assert content(folder) == before
    assert not (other / "ae.pt").exists()
    assert not list(other.glob("resume/step_*"))
    assert not list(other.glob("**/.[!l]*")), "no half-written file stays"


def test_a_limit_hit_while_ae_pt_is_replaced(folder, file_size_limit):
    from dictionary_learning_ext.run_folder.weights import save_weights

    dictionary, _ = load_dictionary(folder)
    before = content(folder)
    file_size_limit(3000)
    with pytest.raises(CheckpointError, match="what it held before is still there"):
        save_weights(folder / "ae.pt", dictionary)
    file_size_limit(resource.RLIM_INFINITY)
    assert content(folder) == before


def test_a_folder_where_nothing_can_be_written(flags, capsys):
    line = refused(["train", *flags, "--save-dir=/proc/vsae"], capsys)
    assert "/proc/vsae can't be written" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(flags, folder, capsys):
    folder.chmod(0o500)
    before = content(folder)
    line = refused(["train", *flags, f"--save-dir={folder}", "--overwrite"], capsys)
    folder.chmod(0o700)
    assert "can't be written" in line
    assert content(folder) == before


def test_no_key_reaches_a_file(flags, tmp_path, monkeypatch):
    keys = {name: f"SECRET{i}" * 5 for i, name in enumerate(("WANDB_API_KEY", "HF_TOKEN"))}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    assert main(["train", *flags, "--wandb=offline", f"--save-dir={run}"]) == 0
    import wandb

    wandb.teardown()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert not any(value.encode() in path.read_bytes() for value in keys.values()), path


# --- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted(TrainConfig().to_dict())) | st.text(max_size=8)
SLOW = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SLOW
@given(values=st.dictionaries(NAMES, JSON, max_size=5))
def test_any_settings_give_a_config_or_a_named_error(values):
    try:
        config = TrainConfig().updated(values, "test")
        config.sae.resolve(config.run.steps, config.run.batch_size)
    except UserError:
        return
    assert isinstance(config.name, str)
    assert "/" not in config.name


@SLOW
@given(raw=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_a_config_or_a_named_error(raw, tmp_path):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(UserError):
        load_config(tmp_path)


@SLOW
@given(data=st.data())
def test_any_change_of_ae_pt_is_noticed(data, trained, tmp_path):
    """Of one byte, or all behind one."""
    whole = (trained / "vsae" / "ae.pt").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    raw = bytearray(whole)
    if data.draw(st.booleans()):
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        del raw[place:]
    shutil.copy(trained / "vsae" / "config.json", tmp_path / "config.json")
    (tmp_path / "ae.pt").write_bytes(raw)
    expected = t.load(trained / "vsae" / "ae.pt", weights_only=True)
    try:
        dictionary, _ = load_dictionary(tmp_path)
    except CheckpointError:
        return
    for name, value in dictionary.state_dict().items():  # a byte that means nothing
        assert t.equal(value, expected[name])


@SLOW
@given(
    section=st.sampled_from(["trainer", "run", "buffer"]),
    values=st.dictionaries(
        st.sampled_from(
            ["dict_class", "dict_size", "activation_dim", "k", "settings", "norm_factor", "lm_name"]
        ),
        JSON,
    ),
)
def test_any_config_json_loads_or_is_a_named_error(section, values, trained, tmp_path):
    config = json.loads((trained / "vsae" / "config.json").read_text())
    config[section] |= values
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(trained / "vsae" / "ae.pt", tmp_path / "ae.pt")
    try:
        dictionary, _ = load_dictionary(Path(tmp_path))
    except CheckpointError:
        return
    assert dictionary.dict_size == 32
