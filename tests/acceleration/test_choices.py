"""Which layers of an accelerated model are computed sparsely."""

import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fggp.acceleration import measured as measured_module
from fggp.acceleration.choices import MARGIN, choose
from fggp.acceleration.measured import TRIED, Measured, Times, measure
from fggp.acceleration.products import Window

seconds = st.integers(0, 1000).map(float)


def test_times_between_and_beyond_the_measured_densities_lie_on_a_line():
    times = Times(dense=1.0, low=0.1, high=0.46, conversion=0.0)
    assert times.sparse(TRIED[0]) == pytest.approx(0.1)
    assert times.sparse(TRIED[1]) == pytest.approx(0.46)
    assert times.sparse(0.5) == pytest.approx(0.1 + 2 * 0.48)
    assert Times(1.0, 0.3, 0.2, 0.0).sparse(1.0) == 0.3  # which noise would have at less than nothing


@given(
    st.lists(st.tuples(st.builds(Times, seconds, seconds, seconds, seconds), st.floats(0, 1)), max_size=6),
    st.booleans(),
)
@example([(Times(dense=0.0, low=0.0, high=1.0, conversion=0.0), 0.0)], False)
def test_no_other_choice_takes_much_less_time(layers, may_be_last):
    layers = {str(i): layer for i, layer in enumerate(layers)}

    layouts = (False, True) if may_be_last else (False,)  # images last

    def cost(sparse, images_last):
        """Seconds of all layers, if activations between them have this layout."""
        total = 0.0
        for name, (times, density) in layers.items():
            total += times.sparse(density) if name in sparse else times.dense
            total += times.conversion * ((name in sparse) != images_last)
        return total

    choices = itertools.chain.from_iterable(itertools.combinations(layers, n) for n in range(len(layers) + 1))
    least = min(cost(sparse, images_last) for sparse in choices for images_last in layouts)
    chosen = choose(layers, may_be_last)
    assert min(cost(chosen, images_last) for images_last in layouts) <= least / MARGIN * (1 + 1e-9)


def test_a_layer_between_others_gives_up_a_little_for_their_layout():
    gains, loses = Times(1.0, 0.1, 0.1, 0.3), Times(0.5, 0.6, 0.6, 0.3)
    assert choose({"a": (gains, 0.1)}, True) == {"a"}
    assert choose({"b": (loses, 0.1)}, True) == set()
    assert choose({"a": (gains, 0.1), "b": (loses, 0.1), "c": (gains, 0.1)}, True) == {"a", "b", "c"}
    assert choose({"a": (Times(1.0, 0.95, 0.95, 0.0), 0.1)}, True) == set()  # too little to be sure of
    much = Times(0.1, 0.6, 0.6, 0.3)
    assert choose({"a": (gains, 0.1), "b": (much, 0.1), "c": (gains, 0.1)}, True) == {"a", "c"}
    assert choose({"a": (Times(1.0, 0.5, 0.5, 0.6), 0.1)}, True) == {"a"}
    assert choose({"a": (Times(1.0, 0.5, 0.5, 0.6), 0.1)}, False) == set()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("window", [None, Window((3, 3), padding=(1, 1))], ids=["linear", "convolution"])
def test_measuring(monkeypatch, window, channels_last):
    counts = iter([8.0, 1.0, 2.0, 0.5])  # dense, at both densities, conversions

    def clock(run):
        run()
        return next(counts)

    monkeypatch.setattr(measured_module, "_seconds", clock)
    x, weight = (
        (torch.zeros(4, 3), torch.zeros(2, 3)) if window is None else (torch.zeros(4, 3, 5, 5), torch.zeros(2, 3, 3, 3))
    )
    if channels_last and window is not None:
        weight = weight.contiguous(memory_format=torch.channels_last)
    state = torch.random.get_rng_state()
    assert measure(x, weight, window, torch.bfloat16) == Times(8.0, 1.0, 2.0, 1.0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_measurements_come_back_from_a_state():
    measured = Measured({"kind": Times(1.0, 2.0, 3.0, 4.0)}, {"0.weight": "kind"})
    again = Measured()
    again.load_state_dict(measured.state_dict())
    assert again == measured
    again.load_state_dict({})
    assert again == Measured()
    damaged = measured.state_dict()
    del damaged["times"]["kind"]
    with pytest.raises(ValueError, match="of a kind that was not measured"):
        measured.load_state_dict(damaged)
    assert measured.kinds == {"0.weight": "kind"}
