"""`smke compare`: flags in, table out."""

from made_runs import make_run

from smke_jax.__main__ import main


def test_it_prints_the_table_and_writes_where_asked_to(tmp_path, capsys):
    runs = [str(make_run(tmp_path / name, batch_size=batch)) for name, batch in (("a", 64), ("b", 128))]
    assert main(["compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].startswith("| a ") and "wrote" not in printed
    assert main(["compare", *runs, f"--out={tmp_path / 'out'}"]) == 0
    assert f"wrote {tmp_path / 'out'}" in capsys.readouterr().out
    written = {"compare.html", "compare.md", "compare.json", "quality.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written


def test_nothing_to_compare_is_one_line(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: neither a run directory nor a directory of them, " \
        "it has no run.json\n"  # fmt: skip
    assert main(["compare"]) == 2
