"""Layouts: every example is shown its own context, at the grains that were asked for."""

from random import Random

import pytest

from shared_context.errors import ConfigError
from shared_context.training.examples import Example
from shared_context.training.layout import CutConfig, LayoutMaker

LENGTHS = {100: 37, 200: 80, 300: 5}
EXAMPLES = [Example(tuple(range(start, start + length)), (1,), (2,)) for start, length in LENGTHS.items()]
EXAMPLES.append(Example(EXAMPLES[0].context, (3,), (4,)))  # the same context, another question


def tokens(layout, number: int) -> list[int]:
    return [layout.chunks[chunk][row] for chunk, rows in layout.shown[number] for row in rows]


@pytest.mark.parametrize("ratio", [1, 8])
def test_a_fixed_layout_shows_the_own_context_at_one_grain(ratio):
    layout = LayoutMaker(CutConfig({8: 1}, chunk_size=32), [9]).fixed(EXAMPLES, ratio)
    assert max(map(len, layout.chunks)) == 32
    assert [t for chunk in layout.chunks[:2] for t in chunk] == list(EXAMPLES[0].context)
    if ratio == 1:
        assert [tokens(layout, i) for i in range(4)] == [list(e.context) for e in EXAMPLES]
    else:  # counted from the end of each chunk of 32
        assert tokens(layout, 0) == tokens(layout, 3) == [107, 115, 123, 131, 136]


def test_drawn_layouts_show_the_own_context_and_others_at_the_coarsest_grains():
    maker = LayoutMaker(CutConfig({1: 1, 4: 1, 8: 1, 16: 1}, packed=0.5, distractors=0.5, mixed=0.5), [9])
    seen = set()
    for seed in range(60):
        layout = maker.draw(EXAMPLES, Random(seed))
        seen.add(len(layout.chunks))
        for number, example in enumerate(EXAMPLES):
            shown = tokens(layout, number)
            own = [token for token in shown if token in example.context]
            assert own == sorted(own)
            assert own[-1] == example.context[-1]
            assert 9 not in shown  # what stands between packed contexts is never shown
            for other in EXAMPLES:
                if other.context != example.context:
                    assert len([t for t in shown if t in other.context]) <= -(-len(other.context) // 8)
    assert seen == {1, 3}


def test_contexts_that_fill_a_chunk_are_not_packed():
    maker = LayoutMaker(CutConfig({8: 1}, chunk_size=100, packed=1.0), [9])
    assert len(maker.draw(EXAMPLES, Random(0)).chunks) == 3


@pytest.mark.parametrize(
    "wrong", [{"ratios": {}}, {"ratios": {0: 1}}, {"ratios": {8: 0}}, {"mixed": 2}, {"split_noise": 1}, {"height": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CutConfig(**{"ratios": {8: 1}, **wrong})
