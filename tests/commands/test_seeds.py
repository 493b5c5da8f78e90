"""`vsae train --seeds`: a cache, a training for each seed, and the table of `vsae reproduce`."""

import os
import re
import shlex
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from signal import SIGINT

import pytest
from small_commands import refused, settings_of

from dictionary_learning_ext.activations import cache_writer
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.commands.flags import parse
from dictionary_learning_ext.commands.seeds import _whole_cache, parse_seeds
from dictionary_learning_ext.commands.train import TRAIN, beside
from dictionary_learning_ext.config.presets import preset
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.features import reproduce as reproduce_module
from dictionary_learning_ext.training import loop
from dictionary_learning_ext.training.sae_run import SAERun

EMBEDDED = shlex.split(
    "train --steps 8 --batch-size 64 --n-ctxs 16 --ctx-len 32 --dict-size 64 --k 4 --eval-tokens 500 "
    "--eval-documents 4 --save-every none --seeds 3 --save-dir runs/three"
)
THREE = Path("runs/three")
TWO = ["--save-dir", "run", "--seeds", "2"]
NAMES = ["seed0", "seed1", "seed2"]


@pytest.fixture(scope="module", autouse=True)
def little_held_out_text():
    """In the caches, which hold as much of it as the default asks for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dictionary_learning_ext.config.run.RunConfig.eval_tokens", 200)
        yield


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Three seeds on the embedded model, uninterrupted: the folder they were trained in."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(EMBEDDED) == 0
    return folder


@pytest.fixture(scope="module")
def of_one(tiny_lm_dir, text):
    """A command that trains one SAE on a tiny language model."""
    return shlex.split(
        f"train --model {tiny_lm_dir} --data {text} --steps 12 --batch-size 32 --n-ctxs 8 "
        "--ctx-len 32 --dict-size 32 --k 4 --eval-tokens 200 --eval-documents 4"
    )


@pytest.fixture(scope="module")
def finished(of_one, tmp_path_factory):
    """The command of `two`, uninterrupted: the folder it ran in, and what it printed."""
    folder, out = tmp_path_factory.mktemp("two"), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        assert main([*of_one, *TWO]) == 0
    return folder, out.getvalue()


@pytest.fixture
def two(of_one, tmp_path, monkeypatch):
    """A command of two seeds, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return [*of_one, *TWO]


@pytest.fixture
def two_there(two, finished):
    """The same, where all is trained."""
    shutil.copytree(finished[0] / "run", "run")
    return two


def weights(folder):
    return (folder / "ae.pt").read_bytes()


def stopped(command, owner, name, call=1):
    """A command with Ctrl-C in a call of a function or method. The signal is real."""
    original, calls = getattr(owner, name), []

    def stopping(*given, **options):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), SIGINT)
        return original(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        return main(command)


def test_each_seed_has_its_folder_and_its_order_of_the_data_and_all_read_one_cache(embedded):
    for seed, name in enumerate(NAMES):
        settings = settings_of(embedded / THREE / name)
        assert (settings["seed"], settings["data_seed"]) == (seed, seed)
        assert settings["activations"] == str(THREE / "cache")
        assert (embedded / THREE / name / "metrics.json").is_file()
    assert len({weights(embedded / THREE / name) for name in NAMES}) == 3


def test_it_ends_with_the_table_and_what_to_type_next(finished):
    seeds, table, report = (
        finished[1].index(text) for text in ("Seeds 0, 1", "as a direction", "vsae report run\n")
    )
    assert seeds < table < report


def test_a_seed_is_the_training_that_its_own_flags_give(two_there, of_one):
    own = ["--activations", "run/cache", "--seed", "1", "--data-seed", "1"]
    assert main([*of_one, *own, "--save-dir", "own"]) == 0
    assert weights(Path("own")) == weights(Path("run/seed1"))


def test_stopped_anywhere_the_same_command_continues_to_the_same_saes(
    embedded, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    places = [
        ("activations", cache_writer._Writer, "training_part", 1),
        ("first seed", SAERun, "update", 3),
        ("its evaluation", loop, "evaluated", 1),
        ("third seed", SAERun, "update", 11),
        ("table", reproduce_module, "reproduce_settings", 1),
    ]
    for what, owner, name, call in places:
        assert stopped(EMBEDDED, owner, name, call) == 130, what
        last = capsys.readouterr().err.splitlines()[-1]
        assert "the same command" in last, what
    assert main(EMBEDDED) == 0
    assert "already; --overwrite" in capsys.readouterr().out
    for name in NAMES:
        assert weights(THREE / name) == weights(embedded / THREE / name)
        metrics = (THREE / name / "metrics.json").read_bytes()
        assert metrics == (embedded / THREE / name / "metrics.json").read_bytes()


@pytest.mark.parametrize("deleted", [[], ["run/cache"]])
def test_a_second_time_shows_the_table_and_trains_and_caches_nothing(
    deleted, two_there, monkeypatch, capsys
):
    for folder in deleted:
        shutil.rmtree(folder)
    there = sorted(Path("run").iterdir())
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("it trains again"))
    assert main(two_there) == 0
    assert "as a direction" in capsys.readouterr().out
    assert sorted(Path("run").iterdir()) == there


def test_more_seeds_are_added_to_those_that_are_there(two_there):
    before = (Path("run/seed0/ae.pt")).stat().st_mtime_ns
    assert main([*two_there, "--seeds", "0,7"]) == 0
    assert Path("run/seed0/ae.pt").stat().st_mtime_ns == before
    settings = settings_of(Path("run/seed7"))
    assert (settings["seed"], settings["data_seed"]) == (7, 7)


def test_without_save_dir_the_folder_is_that_of_the_setting_whichever_the_seeds(of_one, two):
    assert main([*of_one, "--seeds", "2"]) == 0
    assert main([*of_one, "--seeds", "1,3"]) == 0
    (folder,) = Path("runs").iterdir()
    there = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert there == ["cache", "seed0", "seed1", "seed3"]


def test_where_the_disk_is_too_small_each_seed_runs_the_language_model_also_when_continued(
    two, caplog, capsys
):
    whole = shutil.disk_usage(".")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: whole._replace(free=1000))
        assert stopped(two, SAERun, "update", 14) == 130
    assert " 1kB free. Continuing without a cache" in caplog.text
    assert "the same command" in capsys.readouterr().err.splitlines()[-1]
    assert main(two) == 0
    for name in NAMES[:2]:
        assert settings_of(Path("run") / name)["activations"] is None
    assert not Path("run/cache").exists()


def test_activations_that_are_given_are_read_and_no_cache_is_made(two, tmp_path):
    sizes = ["--ctx-len", "32", "--tokens", "2000", "--eval-tokens", "200"]
    assert main(["cache", "mine", *two[1:5], *sizes]) == 0
    assert main([*two, "--activations", "mine"]) == 0
    assert settings_of(Path("run/seed1"))["activations"] == "mine"
    assert not Path("run/cache").exists()


def test_several_hook_points_are_cached_together_and_compared_each(two, capsys):
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    command = [*two, "--hook", ",".join(hooks)]
    assert stopped(command, SAERun, "update", 30) == 130
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("FVE of what") == 2
    for name in NAMES[:2]:
        for hook in hooks:
            assert settings_of(Path("run") / f"{name}_{hook}")["hook"] == hook


def test_a_folder_that_has_moved_is_continued_there(two_there, capsys):
    Path("run").rename("elsewhere")
    assert main([*two_there, "--save-dir", "elsewhere", "--seeds", "3"]) == 0
    assert "vSAE features come back" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(FileNotFoundError):
        settings_of(Path("run") / NAMES[0])


def test_overwrite_starts_over_and_is_continued_without_it(two_there, capsys):
    other = [*two_there, "--steps", "8"]
    assert "steps=12, not 8" in refused(other, capsys)
    assert stopped([*other, "--overwrite"], SAERun, "update", 2) == 130
    assert "without --overwrite" in capsys.readouterr().err.splitlines()[-1]
    assert main(other) == 0
    assert [settings_of(Path("run") / name)["steps"] for name in NAMES[:2]] == [8, 8]


def test_a_seed_that_failed_is_said_by_the_next_same_command(two, capsys):
    assert main([*two, "--lr", "1e18"]) == 2
    assert Path("run/seed0/failed.json").is_file()
    capsys.readouterr()
    assert main([*two, "--lr", "1e18"]) == 2
    out, said = capsys.readouterr()
    assert "already" not in out
    assert "seed0 failed earlier" in said
    assert "seed1 failed earlier" in said
    assert "delete its folder" in said


@pytest.mark.parametrize("given", ["1", "two", "4,4"])
def test_other_values_are_refused_with_what_to_type(given, two, capsys):
    said = refused([*two, f"--seeds={given}"], capsys)
    assert "seeds" in said
    assert "e.g. 4,7,9" in said
    assert not Path("run").exists()


def test_a_number_counts_from_the_seed_and_a_list_is_taken_as_it_is():
    assert parse_seeds("3", 5, True) == [5, 6, 7]
    assert parse_seeds("9, 4", 0, False) == [9, 4]


def test_the_cache_is_of_whole_buffers(tmp_path):
    """A run fills its buffer before it takes a batch of it, so it would read half a buffer of the second pass."""
    run = RunConfig(steps=100, batch_size=96, n_ctxs=8, ctx_len=64)
    assert _whole_cache(tmp_path, run).tokens == 19 * 8 * 64 > 100 * 96 > 18 * 8 * 64


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--seed 3 --seeds 4,7", "a number of seeds beside --seed"),
        ("--save-dir trained", "choose another"),
    ],
)
def test_flags_that_do_not_go_with_it_are_refused_with_what_to_type(
    typed, said, two, trained, capsys
):
    Path("trained").symlink_to(trained / "vsae")
    Path("run").symlink_to(trained / "vsae")
    assert said in refused([*two, *shlex.split(typed)], capsys)


# --- --beside


@pytest.fixture
def pages(monkeypatch):
    """The reports that are written, which say what they are of."""
    written = []

    def write_report(folder, against, page, *, seeds, **_):
        written.append([folder, *against, *seeds])
        if page == Path("run/report.html"):
            page.write_text("a page")

    monkeypatch.setattr("dictionary_learning_ext.report.page.write_report", write_report)
    return written


def rows_of(out):
    """The first cells of the last table, which name its settings, above random tokens."""
    table = out[out.rindex("FVE of what") :].partition("\n\n")[0]
    rows = re.split("\n-+\n", table)[1].splitlines()
    *settings, last = [re.split("  +", line)[0] for line in rows]
    assert last == "random tokens"
    return settings


def trained_in(folder="run"):
    return {path.parent.name for path in Path(folder).glob("*/ae.pt")}


def test_others_beside_it_are_trained_from_the_same_seeds_on_the_same_activations(
    of_one, two, pages, capsys
):
    beside = [*of_one, "--save-dir", "run", "--beside", "top_k,point"]
    assert stopped(beside, SAERun, "update", 40) == 130
    assert main(beside) == 0
    out = capsys.readouterr().out
    assert rows_of(out) == ["vSAE", "TopK", "TopK with an L2 penalty"]
    assert "Open run/report.html" in out
    names = [f"{kind}_seed{seed}" for kind in ("vsae", "top_k", "point") for seed in (0, 1)]
    assert trained_in() == {*names}
    firsts = ["vsae_seed0", "top_k_seed0", "point_seed0"]
    seconds = ["vsae_seed1", "top_k_seed1", "point_seed1"]
    assert pages == [[f"run/{name}" for name in (*firsts, *seconds)]]
    for name in names:
        settings = settings_of(Path("run") / name)
        assert settings["activations"] == "run/cache"
        assert settings["seed"] == settings["data_seed"] == int(name[-1])
    own = ["--activations=run/cache", "--architecture=top_k", "--seed=1", "--data-seed=1"]
    assert main([*of_one, *own, "--save-dir", "own"]) == 0
    assert weights(Path("own")) == weights(Path("run/top_k_seed1"))


def test_seeds_and_architectures_join_a_folder_and_only_what_is_missing_is_trained(
    two_there, pages, caplog, capsys
):
    before = {name: weights(Path("run") / name) for name in NAMES[:2]}
    assert main([*two_there, "--beside", "batch_top_k"]) == 0
    assert trained_in() == {*NAMES[:2], "batch_top_k_seed0", "batch_top_k_seed1"}
    capsys.readouterr()
    assert main([*two_there, "--seeds=3", "--beside=top_k,batch_top_k"]) == 0
    assert rows_of(capsys.readouterr().out) == ["vSAE", "TopK", "BatchTopK"]
    kinds = ("top_k", "batch_top_k")
    others = {f"{kind}_seed{seed}" for kind in kinds for seed in range(3)}
    assert trained_in() == {*NAMES[:2], "vsae_seed2", *others}
    assert len(pages) == 2, "what the first page shows is no longer all"
    assert "is not used" not in caplog.text, "codes are kept"
    assert {name: weights(Path("run") / name) for name in before} == before
    capsys.readouterr()
    assert main([*two_there, "--seeds=3"]) == 0
    out = capsys.readouterr().out
    assert "already; --overwrite" in out
    assert rows_of(out) == ["vSAE"]
    capsys.readouterr()
    assert main(["reproduce", "run", "--tokens", "200"]) == 0
    assert rows_of(capsys.readouterr().out) == ["vSAE", "TopK", "BatchTopK"]
    assert main(["report", "run"]) == 0
    assert [sae.name for sae in pages[-1][:3]] == [
        "run/seed0",
        "run/top_k_seed0",
        "run/batch_top_k_seed0",
    ]
    assert len(pages[-1]) == 9
    resumed = ["train", "--resume", "run/seed0", "--beside", "top_k"]
    assert "leave it out" in refused(resumed, capsys)


def test_each_beside_has_settings_as_by_its_own_flags_and_those_typed_that_mean_the_same():
    typed = shlex.split(
        "--preset paper --architecture top_k --k 7 --dict-size 128 --lr 0.1 --auxk-alpha 0 "
        "--beside vsae_top_k,relu,jump_relu,point"
    )
    found = beside(parse(TRAIN, typed))
    assert [*found] == ["vsae", "relu", "jump_relu", "point"]
    paper = preset("paper").sae
    for name in ("vsae", "point"):
        sae = found[name]
        assert (sae.k, sae.lr, sae.auxk_alpha, sae.beta) == (7, 0.1, 0, paper.beta)
    assert found["vsae"].sigma == paper.sigma
    relu = parse(TRAIN, shlex.split("--preset paper --architecture relu")).sae
    assert found["relu"].lr == relu.lr, "0.1 was meant for TopK's"
    assert found["jump_relu"].target_l0 == 7


def test_beside_a_vsae_over_batch_top_k_point_is_the_same_without_noise():
    typed = "--architecture vsae_batch_top_k --k 7 --noise-to-signal 0.1 --beta 0 --beside point"
    point = beside(parse(TRAIN, shlex.split(typed)))["point"]
    found = point.architecture, point.posterior, point.k, point.beta
    assert found == ("vsae_batch_top_k", "point", 7, 0)
    typed = "--architecture vsae_batch_top_k --posterior point --beside vsae_top_k"
    assert beside(parse(TRAIN, shlex.split(typed)))["vsae"].posterior == "fixed"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--beside topk", "did you mean 'top_k'"),
        ("--beside vsae_top_k", "vsae_top_k is the run's own"),
        ("--posterior point --beside top_k,point", "point is the run's own"),
        ("--beside top_k,top_k", "an SAE twice"),
        ("--beside top_k --data-seed seed", "leave it out"),
    ],
)
def test_what_can_not_stand_beside_it_is_refused_with_what_to_type(typed, said, of_one, capsys):
    assert said in refused([*of_one, *shlex.split(typed)], capsys)


def test_torchrun_and_the_agents_of_a_sweep_train_one_seed(two, monkeypatch, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "method: grid\nparameters: {k: {values: [2, 4]}}\n"
        "command: [vsae, train, --seeds=3, '${args}']\n"
    )
    assert "--data-seed=seed" in refused(["sweep", sweep], capsys)
    sweep.write_text(sweep.read_text().replace("--seeds=3", "--beside=top_k"))
    assert "architecture parameters" in refused(["sweep", sweep], capsys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SWEEP_ID", "abc")
        assert "--data-seed=seed" in refused(two, capsys)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("dictionary_learning_ext.cli.is_first_to_say", lambda line: True)
    said = refused(two, capsys)
    assert "torchrun --nproc-per-node 2" in said
    assert "--seed N --data-seed N" in said
    assert not Path("run").exists()
