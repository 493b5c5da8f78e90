"""The form that is chosen for a machine."""

import torch as t

from dictionary_learning_ext.trainers.kernels import products as step_form
from dictionary_learning_ext.trainers.kernels.products import StepForm


def test_on_a_gpu_products_are_dense_and_the_host_waits_for_nothing():
    form = StepForm.of(t.device("cuda"))
    assert form.sparse_density == 0
    assert not form.reads_dead_count
    assert not form.keeps_rectified, "memory"


def test_on_a_cpu_amx_makes_dense_products_worth_it_sooner(monkeypatch):
    forms = []
    for has_amx in (False, True):
        monkeypatch.setattr(step_form, "_has_amx", lambda has_amx=has_amx: has_amx)
        forms.append(StepForm.of(t.device("cpu")))
        assert forms[-1].reads_dead_count
        assert forms[-1].keeps_rectified
    assert 0 < forms[1].sparse_density < forms[0].sparse_density
    assert 0 < forms[1].sparse_projection_density < forms[0].sparse_projection_density
