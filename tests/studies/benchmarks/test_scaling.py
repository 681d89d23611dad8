"""The scaling benchmark: tables that can be read off the programs, which are made up here."""

import re

import pytest
import tiny

from smke_jax.__main__ import run_program
from smke_jax.parallel.devices import HIGH
from smke_jax.studies.benchmarks import scaling
from smke_jax.studies.plan.program import Program
from smke_jax.studies.plan.traffic import Traffic


def made_up(config) -> Program:
    """Gradients of 1 GB, all in float32; the losses pass 10 kB to every other device."""
    others, devices = config.num_devices - 1, config.num_devices
    kind = {"gather": "all-gather", "ring": "collective-permute"}[config.loss_impl]
    sent = {"all-reduce": 1e9 * others / devices, kind: 1e4 * others}
    memory = {"parameters": 10**6, "optimiser state": 2 * 10**6, "temporaries": 10**6 * devices}
    flops = {"float32": 1e9, HIGH: 1e6 * devices}
    return Program(memory, flops, Traffic(sent, dict.fromkeys(sent, 3), 0), {"trained": 125_000_000})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    (folder / "tiny_config.py").write_text(tiny.CONFIG_FILE)
    arguments = [f"--config={folder / 'tiny_config.py'}", "--devices=2", "--per_device=8", f"--out={folder / 'out.md'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "compile_step", made_up)
        assert run_program(scaling.main, [*arguments, "--config.networks.student.token_types=False"]) == 0
    return (folder / "out.md").read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table whose first row has the cell `heading`."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    starts = [i for i, cells in enumerate(lines) if cells[0] == "devices"]
    (start,) = (i for i in starts if heading in lines[i])
    ends = [i for i in starts if i > start]
    return lines[start + 2 : ends[0] if ends else None]


def test_the_file_names_its_command_and_every_program(written):
    assert "python -m smke_jax.studies.benchmarks.scaling --config=" in written
    assert "--per_device=8 --devices=1,2 --config.networks.student.token_types=False\n" in written
    assert "- commit: " in written
    compiled = rows(written, "temporaries GB")
    assert [row[:3] for row in compiled] == [
        [devices, exchange, batch]
        for devices, batch in (("1", "8"), ("2", "16"))
        for exchange in ("gather", "gather, bfloat16", "ring")
    ]
    exchanges = {(row[0], row[1]): row[5:10] for row in compiled}
    calls = lambda cell: int(re.search(r"\((\d+)\)", cell).group(1)) if "(" in cell else 0  # noqa: E731
    assert calls(exchanges["2", "ring"][4]) > 0 == calls(exchanges["2", "gather"][4])
    assert calls(exchanges["2", "gather"][1]) == 3 and exchanges["2", "ring"][1] == "-"
    assert all(cell == "-" or cell.startswith("0.0 (") for cell in exchanges["1", "gather"])


def test_one_device_is_the_measure_of_efficiency(written):
    for name in scaling.HARDWARE:
        section = written.split(f"## {name}")[1].split("## ")[0]
        predicted = rows(section, "efficiency")
        assert predicted[0][:2] == ["1", "gather"] and predicted[0][-2:] == ["100%", "100%"]
        assert all(int(row[-2].rstrip("%")) < 100 for row in predicted[3:])
        assert "gather is slower than the ring on" in section and "does not fit the memory on none" in section


def test_gradients_in_bfloat16_would_save_half_of_those_in_float32(written):
    section = written.split("## tpu-v5e")[1].split("## ")[0]
    gradients = {tuple(row[:2]): float(row[5]) for row in rows(section, "efficiency")}
    left = rows(section, "two stages")
    assert [row[:2] for row in left] == [["2", "gather"], ["2", "gather, bfloat16"]]
    assert [float(row[3]) for row in left] == pytest.approx([gradients[tuple(row[:2])] / 2 for row in left], abs=0.03)
    assert all(row[4] == "0.00" for row in left)  # two devices are of one domain


def test_a_gather_in_two_stages():
    """On 32 servers of 8: 160 MB a device through one port of 50 GB/s, then 1.28 GB at 450 GB/s."""
    traffic = Traffic({"all-gather": 1.28e9 * 255 / 256}, {"all-gather": 2}, 0)
    found = scaling._two_stages(scaling.DEVICES["h200"], traffic, "all-gather", 256, 1.0)
    assert found == pytest.approx(3.1e-3 + 2.489e-3 + 2 * (5 * 20e-6 + 3 * 10e-6), rel=1e-3)


def test_a_bank_grows_with_the_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(scaling, "compile_step", lambda config: seen.append(config))
    config = tiny.tiny_config()
    scaling.compile_all(config, [1, 16], 8)
    assert [(c.batch_size, c.terms.target_itc.bank_size, c.loss_impl) for c in seen] == [
        (batch, bank, impl) for batch, bank in ((8, 40), (128, 128)) for impl in ("gather", "gather", "ring")
    ]
    assert [c.exchange_dtype for c in seen] == 2 * ["float32", "bfloat16", "float32"]
    assert config.terms.target_itc.bank_size == 40


def test_what_cannot_be_simulated_lies_on_the_line():
    def program(devices):
        traffic = Traffic({"all-gather": 7.0 * devices}, {"all-gather": 3}, 0)
        return Program({"temporaries": 100 + devices}, {"highest": 2.0 * devices}, traffic, {"trained": 5})

    compiled = {(impl, n): program(n) for n in (1, 1024, 2048) for impl in scaling.EXCHANGES}
    assert scaling.extrapolate(compiled, [4096]) == {(impl, 4096): program(4096) for impl in scaling.EXCHANGES}
