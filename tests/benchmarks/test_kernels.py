"""The benchmark runs on any machine."""

from benchmarks import kernels


def test_it_prints_a_row_for_every_kernel(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 1 << 20)
    monkeypatch.setattr(kernels, "ENTRIES", (256,))
    kernels.main(["--device", "cpu", "--tokens", "4096", "--models", "SmolLM2-135M"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(",")[0] for row in rows] == ["| leaf scores", "| node scores", "| KV assembly", "| KV assembly"]
    assert all(float(row.split("|")[2]) >= 0 for row in rows)
