"""Run folders to export, spoiled on purpose, and what a plain TopK SAE makes of their weights."""

import json

import torch as t
from dictionary_learning.dictionary import AutoEncoderNew, GatedAutoEncoder

D, F, K = 16, 32, 4
FORMATS = ("sae-bench", "dictionary-learning", "sae-lens", "sparsify", "safetensors")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["trainer"] |= changes
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    state = t.load(folder / "ae.pt")
    change(state)
    t.save(state, folder / "ae.pt")


def without_negatives(sae, x):
    """What a plain TopK SAE makes of the weights, by its equation, in (features, x_hat)."""
    mu = (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
    kth = mu.sort(dim=1).values[:, -int(sae.k), None]
    f = t.where(mu >= kth, mu, 0.0).clamp_min(0)
    return f, f @ sae.decoder.weight.T + sae.b_dec


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def moved(folder, hook):
    """The same SAE, said to be trained at another hook point."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace("blocks.1.hook_resid_post", hook))
    return folder


def of_class(folder, name):
    """The folder with a random SAE of one of the classes that are loaded but not trained here."""
    sae = {"gated": GatedAutoEncoder, "relu_new": AutoEncoderNew}[name](D, F)
    generator = t.Generator().manual_seed(1)
    with t.no_grad():
        for own_name, value in sae.named_parameters():
            value.copy_(t.randn(value.shape, generator=generator))
            if name == "gated" and own_name == "decoder.weight":
                value /= value.norm(dim=0)
    t.save(sae.state_dict(), folder / "ae.pt")
    trainers = {"gated": "GatedSAETrainer", "relu_new": "StandardTrainerAprilUpdate"}
    edit_config(folder, dict_class=type(sae).__name__, trainer_class=trainers[name], k=None)
    return folder
