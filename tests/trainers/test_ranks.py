"""One rank alone, and the buffer that several average in; tests/training/test_processes.py has several."""

import torch as t

from dictionary_learning_ext.trainers.ranks import ALONE, FlatGradients


def test_one_rank_gets_back_what_it_gave():
    x = t.tensor([0.1, 0.2])
    assert ALONE.sum_(x) is x
    assert ALONE.mean_(x) is x
    assert ALONE.sums(x, x)[1] is x
    assert ALONE.gather(x).tolist() == [x.tolist()]
    ALONE.copy_first_([x])
    assert x.tolist() == t.tensor([0.1, 0.2]).tolist()


class _Doubling:
    """Stands for ranks whose mean is twice what this one has."""

    def mean_(self, x):
        return x.mul_(2)


def test_gradients_keep_their_values_and_strides_and_the_loss_goes_with_them():
    """A decoder is stored by feature, and fused Adam wants gradients stored alike."""
    by_feature = t.nn.Parameter(t.randn(3, 5).t().contiguous().t())
    bias = t.nn.Parameter(t.randn(4))
    gradients = [t.randn(3, 5), t.randn(4)]
    shared = FlatGradients([by_feature, bias], _Doubling())
    for _ in range(2):
        for parameter, gradient in zip((by_feature, bias), gradients, strict=True):
            parameter.grad = gradient.clone()
        assert shared.average(t.tensor(1.5)) == 3
        for parameter, gradient in zip((by_feature, bias), gradients, strict=True):
            assert t.equal(parameter.grad, 2 * gradient)
            assert parameter.grad.stride() == parameter.stride()
    by_feature.grad, bias.grad = gradients
    assert shared.average() is None
    assert t.equal(bias.grad, 2 * gradients[1])
