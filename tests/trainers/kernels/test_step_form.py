"""The form that is chosen for a machine."""

import torch as t

from dictionary_learning_ext.trainers.kernels.step_form import StepForm


def test_on_a_gpu_products_are_dense_and_the_host_waits_for_nothing():
    form = StepForm.of(t.device("cuda"))
    assert form.sparse_density == 0
    assert not form.reads_dead_count
    assert not form.keeps_rectified, "memory"


def test_on_a_cpu_amx_decides():
    form, has_amx = StepForm.of(t.device("cpu")), t.cpu._is_amx_tile_supported()
    densities = (form.sparse_density, form.sparse_projection_density)
    assert densities == ((1 / 16, 1 / 128) if has_amx else (1 / 8, 1 / 16))
    assert form.reads_dead_count
    assert form.keeps_rectified
