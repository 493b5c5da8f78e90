"""Run folders to export, spoiled on purpose, and what a plain TopK SAE makes of their weights."""

import json

import numpy as np
import torch as t
from dictionary_learning.dictionary import AutoEncoderNew, GatedAutoEncoder
from safetensors.torch import save_file

D, F, K = 16, 32, 4
FORMATS = ("sae-bench", "dictionary-learning", "sae-lens", "sparsify")


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


def _of_another_library(folder, seed, f_size, weights, settings, d):
    generator = t.Generator().manual_seed(seed)
    W_dec = t.randn(f_size, d, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    biases = 0.1 * t.randn(f_size, generator=generator), t.randn(d, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights(W_dec, *biases), folder / settings.pop("weights"))
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


def of_sae_lens(folder, seed=0, f_size=F, k=K, d=D, **about):
    """A folder as SAELens 6 saves a TopK SAE of random directions, trained at blocks.1."""
    about = {"sae_lens_version": "6.54.0", "hook_name": "blocks.1.hook_resid_post"} | about
    settings = {"architecture": "topk", "d_in": d, "d_sae": f_size, "k": k, "metadata": about}
    settings |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
    return _of_another_library(
        folder,
        seed,
        f_size,
        lambda W_dec, b_enc, b_dec: {
            "W_enc": W_dec.T.contiguous(),
            "b_enc": b_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
        },
        settings | {"weights": "sae_weights.safetensors"},
        d,
    )


def of_sparsify(folder, seed=0, f_size=F, k=K):
    """A folder as sparsify saves an SAE of random directions. Its name is the module's."""
    settings = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True}
    settings |= {"num_latents": f_size, "k": k, "multi_topk": False, "skip_connection": False}
    return _of_another_library(
        folder,
        seed,
        f_size,
        lambda W_dec, b_enc, b_dec: {
            "encoder.weight": W_dec.clone(),
            "encoder.bias": b_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
        },
        settings | {"transcode": False, "d_in": D, "weights": "sae.safetensors"},
        D,
    )


def of_gemma_scope(folder, d=D, f_size=F, **changes):
    """A folder with a file of Gemma Scope's layout, of random weights. Returns these.

    Arguments:
        changes: arrays in place of the file's own; None leaves one out.
    """
    generator = np.random.default_rng(0)
    weights = {
        "W_enc": generator.normal(size=(d, f_size)),
        "W_dec": generator.normal(size=(f_size, d)),
        "b_enc": generator.normal(size=f_size),
        "b_dec": generator.normal(size=d),
        "threshold": generator.uniform(0, 2, size=f_size),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()} | changes
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{n: v for n, v in weights.items() if v is not None})
    return weights


def of_baker_li(folder, *, learned=False, is_centred=False, dtype=t.bfloat16, **changes):
    """A folder as the paper's public code writes it: the weights of its VSAETopK, and what else it says of it."""
    generator = t.Generator().manual_seed(2)

    def draw(*shape):
        return t.randn(*shape, generator=generator).to(dtype)

    state = {
        "k": t.tensor(K, dtype=t.int32),
        "bias" if is_centred else "decoder.bias": draw(D),
        "encoder.weight": draw(F, D),
        "encoder.bias": draw(F),
        "decoder.weight": draw(D, F),
    }
    if learned:
        state |= {"var_encoder.weight": draw(F, D) / 10, "var_encoder.bias": draw(F) - 2}
    folder.mkdir(parents=True, exist_ok=True)
    t.save(state, folder / "ae.pt")
    trainer = {
        "dict_class": "VSAETopK",
        "trainer_class": "VSAETopKTrainer",
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "var_flag": int(learned),
        "use_april_update_mode": not is_centred,
        "log_var_init": -2.0,
        "dtype": "torch.bfloat16",
        "device": "cuda",
        "lr": 8e-4,
        "kl_coeff": 1.0,
        "auxk_alpha": 0,
        "layer": 1,
        "lm_name": "some/model",
        "wandb_name": "VSAETopK_fixed_var",
        "submodule_name": "blocks.1.hook_resid_post",
        "seed": 42,
        "architecture_version": "vae_topk_v2",
        "key_features": ["topk_on_absolute_values"],
    } | changes
    buffer = {"d_submodule": D, "n_ctxs": 2500, "ctx_len": 64, "refresh_batch_size": 12}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
    return folder, {name: value.float() for name, value in state.items()}
