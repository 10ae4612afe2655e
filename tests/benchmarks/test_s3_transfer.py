"""The comparison of transfers runs, and has a row for everyone."""

from tests.benchmarks.bench_s3_transfer import main


def test_everyone_gets_a_rate(tmp_path, capsys):
    assert main(["--mb", "2", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "MB/s" in line]
    assert [line.split()[:2] for line in rows] == [
        [way, what] for way in ("upload", "download") for what in ("plain", "dataset", "boto3")
    ]
    assert not list(tmp_path.iterdir())
