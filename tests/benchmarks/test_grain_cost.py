"""What coarse grains cost: that each figure stands beside what goes without them, on a small random model."""

from benchmarks import grain_cost


def test_times_and_bytes_stand_beside_what_goes_without_coarse_grains(make_small_model):
    model = make_small_model(window=8192)
    text = "# Lamps\n\nThe lamp burns colza, a pint a night, and is trimmed at four.\n\n# Fog\n\nThe horn sounds twice."
    report = grain_cost.measure(model, text, "What burns?", entries=(40,), runs=2)
    encoding, first, kept = (part.table() for part in report.parts)
    # The small model has no probe.
    assert [row[0] for row in encoding.rows] == [grain_cost.KV, grain_cost.REPETITION]
    assert [row[:3] for row in first.rows] == [
        (40, grain_cost.WHOLE, 40),
        (40, grain_cost.RAGGED, 40 * grain_cost.RATIO),
    ]
    sizes = dict(kept.rows)
    assert sizes[grain_cost.COARSE] < sizes[grain_cost.ALL] / 2
    (share,) = (target.value for target in report.targets if target.what.startswith(grain_cost.COARSE))
    assert share == sizes[grain_cost.COARSE] / sizes[grain_cost.ALL]
