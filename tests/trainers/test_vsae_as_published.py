"""The vSAE of the paper's public code: its step, restated from the source, and its run through every command."""

import json

import pytest
import torch as t
from dictionary_learning.training import trainSAE
from small_trainers import STEPS, F, K, batch, built, in_float64

from dictionary_learning_ext import VSAEAsPublishedTrainer, VSAETopK, load_dictionary
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.run_folder.sae_folder import find_run, find_sae

NAME = "vsae_as_published"


class Restated:
    """The public code's step. Lines are those of github.com/ZachData/SPAR-Variational-Sparse-Autoencoders at 8e1581a:
    dictionary_learning/trainers/vsae_topk.py, or trainer.py beside it."""

    def __init__(self, state, k, lr, kl_coeff, steps, warmup, decay_start):
        self.p = {n: v.clone().requires_grad_() for n, v in state.items() if n != "k"}
        self.k, self.kl_coeff, self.steps = k, kl_coeff, steps
        self.warmup, self.decay_start = warmup, decay_start
        self.kl_warmup = int(0.1 * steps)  # vsae_topk.py:642
        self.adam = t.optim.Adam(self.p.values(), lr=lr, betas=(0.9, 0.999))  # :775
        self.lr = lr

    def selected(self, x):
        z = x @ self.p["encoder.weight"].T + self.p["encoder.bias"]  # :252; x itself, :224
        z = t.relu(z)  # :253; z = mu, :263
        indices = z.abs().topk(self.k, dim=-1).indices  # :267, :268
        return z, t.zeros_like(z).scatter(-1, indices, z.gather(-1, indices))  # :271 to :274

    def step(self, step, x):
        warmed = min(1.0, step / self.warmup)  # trainer.py:153
        if step >= self.decay_start:  # trainer.py:157
            warmed = (self.steps - step) / (self.steps - self.decay_start)
        self.adam.param_groups[0]["lr"] = self.lr * warmed
        z, f = self.selected(x)
        x_hat = f @ self.p["decoder.weight"].T + self.p["decoder.bias"]  # vsae_topk.py:321
        recon_loss = (x - x_hat).pow(2).sum(-1).mean()  # :914
        kl_loss = (0.5 * t.clamp(z, -10.0, 10.0).pow(2).sum(1)).mean()  # :826, :827, :830
        kl_scale = step / self.kl_warmup if step < self.kl_warmup else 1.0  # :85 to :88
        self.adam.zero_grad()
        (recon_loss + self.kl_coeff * kl_scale * kl_loss).backward()  # :934; auxk_alpha is 0
        t.nn.utils.clip_grad_norm_(self.p.values(), 1.0)  # :988
        self.adam.step()  # :994; nothing is normalised or projected in april mode, :998


def test_fifty_steps_are_those_of_the_public_code():
    trainer = in_float64(built(NAME, lr=3e-2, warmup_steps=4, decay_start=40, beta=0.7))
    state = trainer.ae.state_dict()
    assert state.keys() == {
        *("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
        "k",
    }
    assert t.equal(state["encoder.weight"], state["decoder.weight"].T)  # :199, :200
    assert t.allclose(state["decoder.weight"].norm(dim=0), t.tensor(0.1).double())  # :195
    assert not state["encoder.bias"].any()  # :203
    assert not state["decoder.bias"].any()  # :205
    theirs = Restated(state, K, 3e-2, 0.7, STEPS, 4, 40)
    is_clamped = False
    for step in range(50):
        x = 30 * batch(step).double() if step == 20 else batch(step).double()
        z, f = theirs.selected(x)
        is_clamped |= bool((z > 10).any())
        assert t.equal(trainer.ae.encode(x) != 0, f != 0)
        trainer.update(step, x)
        theirs.step(step, x)
    assert is_clamped
    for name, value in theirs.p.items():
        assert t.allclose(trainer.ae.state_dict()[name], value, rtol=0, atol=1e-10), name


def test_in_bfloat16_everything_that_is_kept_is():
    trainer = built(NAME, dtype="bfloat16")
    loss = trainer.update(0, batch(0))
    moments = [
        v for each in trainer.optimizer.state.values() for n, v in each.items() if "exp" in n
    ]
    assert {v.dtype for v in (*trainer.ae.parameters(), *moments)} == {t.bfloat16}
    assert loss.dtype == t.float32
    x = batch(0)
    x_hat = trainer.ae(x.bfloat16()).detach().double()
    residual, total = (v.square().sum() for v in (x - x_hat, x - x.mean(0)))
    assert trainer.metrics(1, x)["fve"] == pytest.approx(float(1 - residual / total), abs=1e-3)


def test_unit_norms_for_sae_bench_change_no_reconstruction_and_folded_ones_do():
    ae = in_float64(built(NAME)).ae
    with t.no_grad():
        ae.decoder.weight.mul_(t.linspace(0.2, 3, F))
        ae.decoder.weight[:, -1] = 0
    x, folded = batch(0).double(), ae.with_norms_folded()
    before = ae(x)
    assert not t.equal(folded.encode(x) != 0, ae.encode(x) != 0)
    ae.normalize_decoder()
    for each in (ae, folded):
        norms = each.decoder.weight.norm(dim=0)
        assert t.allclose(norms[:-1], t.ones(F - 1).double())
        assert norms[-1] == 0
    assert t.allclose(ae(x), before)
    assert folded(x).isfinite().all()
    values, indices = ae.encode(x, return_topk=True)[1:3]
    assert t.equal(t.zeros(len(x), F).double().scatter(1, indices, values), ae.encode(x))


def test_a_folder_of_trainsae_is_ours_and_not_the_authors(tmp_path):
    config = {"trainer": VSAEAsPublishedTrainer, "activation_dim": batch(0).shape[1]}
    config |= {"steps": 4, "dict_size": F, "k": K, "layer": 0, "lm_name": "tiny", "device": "cpu"}
    config["warmup_steps"] = 1
    batches = (batch(i) for i in range(200))
    kinds = {"normalize_activations": True, "device": "cpu"}
    trainSAE(batches, [config], steps=4, save_dir=str(tmp_path), **kinds)
    folder = tmp_path / "trainer_0"
    find_run(folder, "export")
    assert isinstance(load_dictionary(folder)[0], VSAETopK)


# --- a run of the preset


@pytest.fixture(scope="module")
def runs(flags, tmp_path_factory):
    """Run folders of two seeds."""
    base = tmp_path_factory.mktemp("as_published")
    preset = ["--preset=paper-as-run", "--eval-tokens=2048", "--dtype=float32"]
    preset += ["--hook=blocks.1.hook_resid_post", "--dict-size=64", "--k=8"]
    for seed in ("0", "1"):
        own = [*preset, f"--seed={seed}", f"--save-dir={base / seed}"]
        assert main(["train", *flags, *own]) == 0
    return base


@pytest.mark.slow
def test_a_run_of_the_preset_through_every_command(runs, tmp_path, capsys):
    one, other = str(runs / "0"), str(runs / "1")
    settings = json.loads((runs / "0" / "config.json").read_text())["run"]["settings"]
    assert (settings["architecture"], settings["normalize"], settings["beta"]) == (NAME, "unit", 1)
    for command in (
        ["eval", one],
        ["compare", one, other],
        ["report", one, "--pages=4", "--tokens=2048", f"--out={tmp_path / 'one.html'}"],
        ["reproduce", one, other],
        ["export", one, "--format=dictionary-learning"],
        ["export", one, "--format=sae-bench", "--allow-inexact"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert "held-out tokens have another code" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "refused")]
    for name, reason in {
        "sae-bench": "allow_inexact=True",
        "sae-lens": "dictionary-learning",
    }.items():
        assert main(["export", one, "--format", name, *out]) != 0
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert reason in line


def test_its_weights_beside_the_authors_config_have_the_same_codes(runs, tmp_path):
    assert find_sae(runs / "0").form is None
    ours, config = load_dictionary(runs / "0")
    theirs = {"dict_class": "VSAETopK", "activation_dim": ours.activation_dim}
    theirs |= {"dict_size": ours.dict_size, "k": int(ours.k), "var_flag": 0}
    theirs |= {"use_april_update_mode": True}
    assert config["trainer"].items() >= theirs.items()
    (tmp_path / "ae.pt").write_bytes((runs / "0" / "ae.pt").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"trainer": theirs}))
    assert find_sae(tmp_path).form == "Baker & Li"
    read, _ = load_dictionary(tmp_path)
    x = 5 * t.randn(200, ours.activation_dim, generator=t.Generator().manual_seed(0))
    assert t.allclose(read.double().encode(x.double()), ours.double().encode(x.double()))
    assert t.allclose(read.decode(read.encode(x.double())), ours(x.double()))
