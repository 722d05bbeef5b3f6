"""The measurement of a device runs on any machine, and says what did not."""

from dataclasses import replace

import torch

from benchmarks import device, kernels
from shared_context.evaluation.report import read_reports

LITTLE = replace(device.MINIATURE, contexts=(64, 256), decoded=(64,), stored=1024)


def test_every_part_is_measured_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 1 << 20)
    monkeypatch.setattr(device, "MINIATURE", LITTLE)
    device.main(["--device", "cpu", "--json", str(tmp_path / "all.json")])
    reports = {report.name: report for report in read_reports(tmp_path / "all.json")}
    assert list(reports) == ["kernels", "exactness", "store", "answers"]
    assert not any(report.not_run for report in reports.values())
    rounding = {row[0]: row[1:] for row in reports["exactness"].parts[0].rows}
    assert rounding["float32"][0] < 1e-3
    assert all(0 < injected < 0.2 for injected, _ in (rounding["bfloat16"], rounding["float16"]))
    first, decoded, _ = reports["answers"].parts
    assert [tuple(row[:2]) for row in first.rows] == [(64, 64), (256, 256)]
    assert [row[0] for row in decoded.rows] == [64]
    assert "in miniature" in capsys.readouterr().out


def test_what_fails_is_named_and_the_rest_goes_on(monkeypatch):
    def broken(*args):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(device, "kernels", broken)
    reports = list(device.measured(LITTLE, torch.device("cpu")))
    assert [report.name for report in reports] == ["kernels", "exactness", "store", "answers"]
    assert reports[0].not_run == {"kernels": "RuntimeError: no such instruction"}
    late = list(device.measured(LITTLE, torch.device("cpu"), minutes=0))
    assert [report.not_run for report in late] == [
        {name: "the time was up"} for name in ("kernels", "exactness", "speed")
    ]
