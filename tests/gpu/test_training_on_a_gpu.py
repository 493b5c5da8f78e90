"""Training on a GPU: `make test-gpu`. Without one, these tests are skipped and say so."""

import math

import pytest
import torch as t
from step_cases import CASES

from dictionary_learning_ext import RunConfig, VariationalTopKTrainer
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.run_folder.sae_folder import read_metrics
from dictionary_learning_ext.training.loop import train

pytestmark = pytest.mark.skipif(
    not t.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False"
)
D, F, K, BATCH = 64, 512, 16, 256


def trainer(device, dict_size=F, activation_dim=D, k=K, **options):
    return VariationalTopKTrainer(
        steps=100,
        activation_dim=activation_dim,
        dict_size=dict_size,
        k=k,
        layer=0,
        lm_name="tiny",
        warmup_steps=2,
        device=device,
        seed=0,
        dead_feature_threshold=2 * BATCH,  # so that AuxK runs
        threshold_start_step=0,
        **options,
    )


def batch(seed, rows=BATCH, width=D):
    return t.randn(rows, width, generator=t.Generator().manual_seed(seed))


each_setting = pytest.mark.parametrize(
    "settings", [case.options | {"dtype": case.dtype} for case in CASES], ids=str
)


@each_setting
def test_without_noise_a_gpu_learns_what_the_cpu_learns(settings):
    """From the first step on the noise is annealed away, since devices draw different noise."""
    cpu, gpu = (trainer(device, noise_anneal_steps=1, **settings) for device in ("cpu", "cuda"))
    gpu.ae.load_state_dict(cpu.ae.state_dict())
    tolerance = 1e-4 if settings["dtype"] == "float32" else 2e-2
    for step in range(1, 9):
        losses = [one.update(step, batch(step).to(one.device)).item() for one in (cpu, gpu)]
        assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    for name, value in cpu.ae.named_parameters():
        # Adam divides by the gradient's size, so a rounding near 0 can move a weight by lr.
        near = (gpu.ae.state_dict()[name].cpu() - value).abs() < 10 * tolerance
        assert near.float().mean() > 0.98, name


@each_setting
def test_a_step_never_waits_for_the_gpu(settings):
    own = trainer("cuda", **settings)
    x = batch(0).cuda()
    own.update(0, x)  # the first step sets b_dec, and looks whether the noise is large
    try:
        t.cuda.set_sync_debug_mode("error")
        for step in range(1, 5):
            own.update(step, x)
    finally:
        t.cuda.set_sync_debug_mode("default")


LARGE = [
    {"posterior": posterior, "rectify": rectify, "dtype": dtype}
    for posterior in ("fixed", "learned", "point")
    for rectify in (False, True)
    for dtype in ("float32", "bfloat16")
]
"""With the noise on both and the KL over all features, which take the most memory."""


@pytest.mark.slow
@pytest.mark.parametrize("settings", LARGE, ids=str)
def test_memory_over_the_weights_is_at_most_that_of_the_gradients_and_five_tensors(settings):
    """Three tensors are B x F and two F x D, in fp32, at the shapes of Gemma 2 2B's residual stream."""
    rows, width, dict_size = 4096, 2304, 65_536
    own = trainer("cuda", dict_size, width, k=64, **settings)
    x = batch(0, rows, width).cuda()
    own.update(0, x)
    matrices = sum(parameter.dim() == 2 for parameter in own.ae.parameters())
    t.cuda.reset_peak_memory_stats()
    before = t.cuda.memory_allocated()
    own.update(1, x)
    numbers = 3 * rows * dict_size + (matrices + 2) * dict_size * width
    assert t.cuda.max_memory_allocated() - before < 4 * numbers


def test_noise_on_a_gpu_is_normal():
    own = trainer("cuda", dict_size=2048, posterior="fixed", sigma=0.5)
    x = t.zeros(512, D, device="cuda")
    generator = t.Generator("cuda").manual_seed(1)
    noise = own.ae.encode(x, sample=True, generator=generator)
    chosen = noise[noise != 0].double().cpu()
    largest = t.randn(512, 2048, generator=t.Generator().manual_seed(2)).topk(K).values.double() / 2
    error = 4 * (largest.var() * 2 / chosen.numel()).sqrt()
    assert chosen.numel() == 512 * K
    assert abs(chosen.mean() - largest.mean()) < error


def test_a_run_on_a_gpu_reaches_what_a_run_on_the_cpu_reaches(tmp_path):
    fve = {}
    for device in ("cpu", "cuda"):
        sae = VSAETopKConfig(k=16, dict_size=512, posterior="point", beta=0.0)
        settings = RunConfig(steps=200, device=device, save_dir=str(tmp_path / device))
        folders = train(settings, {"sae": sae})
        fve[device] = read_metrics(folders["sae"])["fve"]
    assert fve["cuda"] == pytest.approx(fve["cpu"], abs=0.005)
    assert math.isfinite(fve["cuda"])
