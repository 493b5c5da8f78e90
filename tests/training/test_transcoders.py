"""Transcoders as `vsae train` trains them: several in a run, stopped and continued, measured, compared."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch as t
from interrupted_runs import STEPS, assert_equal, results, resumed, sae_of, stopped_at

from dictionary_learning_ext import find_hook, load_dictionary, steer, train
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import ConfigError, Interrupted, UserError
from dictionary_learning_ext.evaluation.folders import evaluate_folders, open_folders
from dictionary_learning_ext.features.random_tokens import random_token_saes
from dictionary_learning_ext.features.reproduce import reproduce
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.training.plan import plan

PAIRS = {
    f"blocks.{n}.mlp.hook_in_to_blocks.{n}.hook_mlp_out": (
        f"blocks.{n}.mlp.hook_in",
        f"blocks.{n}.hook_mlp_out",
    )
    for n in (0, 1)
}
SITES = [*PAIRS]


@pytest.fixture(scope="module")
def of_pairs(anywhere):
    hooks, targets = (",".join(names) for names in zip(*PAIRS.values(), strict=True))
    return replace(anywhere, hook=hooks, target=targets)


@pytest.fixture(scope="module")
def trained(of_pairs, tmp_path_factory):
    """A transcoder of each kind at each of two layers, in one run, and the folders."""
    run = replace(of_pairs, save_dir=str(tmp_path_factory.mktemp("transcoders")))
    saes, hooks = kinds()
    return train(run, saes, hooks)


def kinds():
    saes = {
        "top": sae_of(),
        "batch": sae_of("vsae_batch_top_k"),
        "point": sae_of(posterior="point"),
    }
    return saes, {"top": SITES[0], "batch": SITES[1], "point": SITES[1]}


def test_stopped_and_continued_they_are_the_same_to_the_bit(
    trained, of_pairs, tmp_path, monkeypatch
):
    run = replace(of_pairs, save_dir=str(tmp_path / "stopped"))
    stopped_at(23, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, *kinds())
    continued = resumed(tmp_path / "stopped")
    for name, folder in trained.items():
        assert_equal(results(folder), results(continued[name]), name)
        assert len(results(folder)["log"].splitlines()) > STEPS // 7


def test_each_is_what_it_is_alone(trained, of_pairs, tmp_path):
    alone = train(
        replace(of_pairs.at(SITES[1]), save_dir=str(tmp_path)), {"x": kinds()[0]["batch"]}
    )
    own, other = (t.load(folder / "ae.pt") for folder in (trained["batch"], alone["x"]))
    assert all(t.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize("name", ["top", "batch"])
def test_metrics_are_of_y_and_of_what_the_model_does_with_y_hat(name, trained):
    folder = trained[name]
    run, metrics = find_sae(folder).run, json.loads((folder / "metrics.json").read_text())
    assert metrics["measured_on"]["target"] == run.target
    sae, _ = load_dictionary(folder)
    inputs = open_inputs(run, [run.site])
    x, y = t.cat([batch.wanted_ND for batch in inputs.contexts(run.site, "heldout", 200)]).chunk(
        2, 1
    )
    y_hat = sae.decode(sae.encode(x))
    fve = 1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert metrics["fve"] == pytest.approx(float(fve), abs=1e-4)
    held_out = inputs.held_out(run.site, 200)
    lm, change, summed, n = load_language_model(run.model), [], [0.0, 0.0], 0
    read, written = (find_hook(lm, side).place.module for side in (run.hook, run.target))
    read.register_forward_pre_hook(lambda _m, args: change.append(args[0]))
    is_on = [False]

    def replace_output(_module, _args, output):
        x = change.pop()
        return sae.decode(sae.encode(x)) if is_on[0] else output

    written.register_forward_hook(replace_output)
    for ids, mask in held_out.documents:
        for i in (0, 1):
            is_on[0] = bool(i)
            with t.no_grad():
                logits = lm._module(input_ids=ids, attention_mask=mask).logits[:, :-1]
            is_next = mask[:, 1:] == 1
            losses = t.nn.functional.cross_entropy(
                logits[is_next], ids[:, 1:][is_next], reduction="sum"
            )
            summed[i] += float(losses)
        n += int(is_next.sum())
    assert metrics["loss_original"] == pytest.approx(summed[0] / n, abs=1e-5)
    assert metrics["loss_reconstructed"] == pytest.approx(summed[1] / n, abs=1e-5)


def test_codes_are_of_the_pair_and_the_evaluation_repeats(trained):
    folder = trained["batch"]
    was = json.loads((folder / "metrics.json").read_text())
    (again,) = evaluate_folders([folder]).values()
    assert again["fve"] == pytest.approx(was["fve"], abs=1e-6)
    opened = open_folders([folder])
    (codes,) = opened.codes().values()
    assert codes.text["target"] == find_sae(folder).run.target
    assert codes.n_features == 32


def test_an_sae_of_the_same_hook_point_can_not_be_compared(trained, of_pairs, tmp_path):
    run = replace(
        of_pairs, hook=PAIRS[SITES[0]][0], target=None, save_dir=str(tmp_path), eval_tokens=0
    )
    sae = train(run, {"x": sae_of()})["x"]
    with pytest.raises(UserError, match="target"):
        reproduce([trained["top"], sae])


def test_random_tokens_decode_y(trained):
    """Their codes are of x, and the decoder is the best linear one for y."""
    opened = open_folders([trained["batch"]])
    rows = t.cat([batch.wanted_ND for batch in opened.contexts("train", 2000)])
    (sae,) = random_token_saes(rows, [(24, 3)], transcode=True)
    x, y = rows.double().chunk(2, 1)
    W = sae.encoder.weight.detach().double()
    products = (x - x.mean(0)) @ W.T
    unit = t.nn.functional.normalize(x - x.mean(0), dim=1)
    assert float((W @ unit.T).amax(1).min()) > 0.999
    code = products.relu() * (products >= products.topk(3, dim=1).values[:, -1:])
    t.testing.assert_close(sae.encode(rows.chunk(2, 1)[0]).double(), code, atol=1e-3, rtol=1e-3)
    best = t.linalg.lstsq(code, y - y.mean(0), driver="gelsd").solution
    fires = (code != 0).any(0)
    t.testing.assert_close(
        sae.decoder.weight.detach().double().T[fires], best[fires], atol=2e-2, rtol=2e-2
    )


def test_reproduce_compares_with_random_tokens(trained, of_pairs, tmp_path, capsys):
    folders = []
    for seed in (0, 1):
        run = replace(of_pairs.at(SITES[1]), save_dir=str(tmp_path / f"seed{seed}"), data_seed=seed)
        folders.append(str(train(run, {"x": sae_of(seed=seed)})["x"]))
    null = reproduce(folders, None).random_tokens
    main(["reproduce", *folders])
    (row,) = re.findall("^random tokens .*", capsys.readouterr().out, re.MULTILINE)
    assert f" {null['in_function_fve']:.3f} " in row
    assert row.endswith(f" {null['fve']:.4f}")


def test_steering_changes_the_target(trained):
    run = find_sae(trained["top"]).run
    lm, ids = load_language_model(run.model), t.tensor([[5, 9, 40]])
    sae, _ = load_dictionary(trained["top"])
    point = find_hook(lm, run.target)
    seen: list[Any] = []
    with steer(lm, None, trained["top"], {3: 2.0}):
        handle = point.place.module.register_forward_hook(lambda _m, _a, out: seen.append(out))
        with t.no_grad():
            lm._module(input_ids=ids)
        handle.remove()
    handle = point.place.module.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with t.no_grad():
        lm._module(input_ids=ids)
    handle.remove()
    steered, plain = seen
    added = (steered - plain)[0]
    expected = 2 * sae.decoder.weight.detach()[:, 3].expand(3, -1)
    t.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("sae", "changes", "said"),
    [
        ({"architecture": "top_k"}, {}, "vsae_top_k or vsae_batch_top_k"),
        ({"architecture": "vsae"}, {}, "vsae_top_k or vsae_batch_top_k"),
        ({"start": "data"}, {}, "start"),
        ({"init_from": "runs/x"}, {}, "init_from"),
        ({}, {"split": 2}, "split"),
    ],
)
def test_what_no_transcoder_is_trained_with_is_refused(sae, changes, said, of_pairs, tmp_path):
    run = replace(of_pairs.at(SITES[0]), save_dir=str(tmp_path / "x"), **changes)
    with pytest.raises(ConfigError, match=said):
        plan(run, {"x": sae_of(**sae)})


def test_as_many_targets_as_hooks(anywhere):
    with pytest.raises(ConfigError, match="as many names as hook="):
        replace(anywhere, target="a,b")
    with pytest.raises(ConfigError, match="the name of a hook point in hook"):
        replace(anywhere, hook="middle", target="blocks.1.hook_mlp_out")


def test_names_of_folders_depend_on_the_target(of_pairs):
    from dictionary_learning_ext.config.names import automatic_name
    from dictionary_learning_ext.config.run import TrainConfig

    pair = of_pairs.at(SITES[0])
    runs = [pair, replace(pair, target="blocks.1.hook_mlp_out"), replace(pair, target=None)]
    assert len({automatic_name(TrainConfig(sae_of(), run)) for run in runs}) == 3


@pytest.mark.slow
def test_from_a_cache_and_from_several_seeds(of_pairs, tmp_path, capsys):
    hooks, targets = of_pairs.hook, of_pairs.target
    sizes = ["--ctx-len", "32", "--eval-tokens", "200", "--eval-documents", "4"]
    where = ["--model", of_pairs.model, "--data", of_pairs.data, *sizes]
    small = [
        "--steps",
        "20",
        "--batch-size",
        "64",
        "--n-ctxs",
        "16",
        "--k",
        "4",
        "--dict-size",
        "32",
    ]
    main(["cache", *where, "--hook", f"{hooks},{targets}", "--tokens", "3000", str(tmp_path / "c")])
    both = ["--hook", hooks, "--target", targets, "--save-dir"]
    main(
        ["train", *small, *sizes, "--activations", str(tmp_path / "c"), *both, str(tmp_path / "a")]
    )
    assert {path.name for path in Path(tmp_path / "a").iterdir()} == {*SITES}
    for folder in (tmp_path / "a").iterdir():  # x and y are those of the language model
        (live,) = evaluate_folders([folder], out=tmp_path / "live", activations="none").values()
        kept = json.loads((folder / "metrics.json").read_text())
        assert live["fve"] == pytest.approx(kept["fve"], abs=1e-3)
    command = ["train", *where, *small, "--seeds", "2", *both, str(tmp_path / "s")]
    main(command)
    expected = {f"seed{seed}_{site}" for seed in (0, 1) for site in SITES} | {"cache"}
    assert {path.name for path in Path(tmp_path / "s").iterdir() if path.is_dir()} == expected
    capsys.readouterr()
    main(command)
    assert "already" in capsys.readouterr().out
