"""The benchmark runs on any machine."""

from shared_context.kernels import benchmark


def test_it_prints_a_row_for_every_kernel(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ROTATED_BYTES", 1 << 20)
    monkeypatch.setattr(benchmark, "ENTRIES", (256,))
    benchmark.main(["--device", "cpu", "--tokens", "4096", "--models", "SmolLM2-135M"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(",")[0] for row in rows] == ["| leaf scores", "| node scores", "| KV assembly", "| KV assembly"]
    assert all(float(row.split("|")[2]) >= 0 for row in rows)
