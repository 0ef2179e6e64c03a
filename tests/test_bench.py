"""Networks are compared on engines in turns, as a table, a document and a figure."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import draw
from matplotlib.figure import Figure

from gatepruner.errors import CheckpointError, EngineError
from gatepruner.files.checkpoints import load, save
from gatepruner.measuring import bench as bench_module
from gatepruner.measuring.bench import Measured, bench
from gatepruner.measuring.engines import ENGINES, Eager
from gatepruner.measuring.latency import Latency
from gatepruner.measuring.programs import TOLERANCE, check_same, tolerance
from gatepruner.measuring.recorded import Recorded
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.surgery import fold_gates, remove
from gatepruner.report.bench import bench_figure, bench_table

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def networks() -> dict[str, Checkpoint]:
    whole = draw("gated-resnet8", input_shape=SHAPE)
    return {"whole": whole, "small": remove(whole, ["layer2.0"])}


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int, int]]:
    """An engine like PyTorch's that keeps the batch size and threads of every pass."""
    seen: list[tuple[str, int, int]] = []

    class Noting(Eager):
        def __init__(self, program, images, threads):
            super().__init__(program, images, threads)
            self.name = program.name

        def __call__(self, images):
            seen.append((self.name, len(images), torch.get_num_threads()))
            return super().__call__(images)

    monkeypatch.setitem(ENGINES, "noting", Noting)
    return seen


def test_all_cases_are_measured_in_turns(networks, calls):
    measured = bench(networks, ("noting",), (1, 4), threads=1, seconds=0)
    cases = [("whole", 1, 1), ("small", 1, 1), ("whole", 4, 1), ("small", 4, 1)]
    assert calls[-10 * 4 :] == cases * 10
    assert [(one.name, one.latency.batch, 1) for one in measured] == cases
    assert {one.latency.runs for one in measured} == {10}
    assert all(one.latency.engine == "noting" and one.difference == 0 for one in measured)


def test_an_engine_that_computes_something_else_is_refused(networks, monkeypatch):
    class Wrong(Eager):
        def __call__(self, images):
            return 1.01 * super().__call__(images)

    monkeypatch.setitem(ENGINES, "wrong", Wrong)
    message = r"whole on wrong computes something else: a logit differs by 0\.01 of the greatest"
    with pytest.raises(EngineError, match=message):
        bench(networks, ("eager", "wrong"), seconds=0)


def test_a_difference_is_relative_to_the_greatest_logit():
    expected = torch.tensor([[1.0, -200.0]])
    assert check_same("it", expected + 0.1, expected) == pytest.approx(0.1 / 200, rel=1e-3)
    with pytest.raises(EngineError, match=f"differs by 0.002 .* at most {TOLERANCE:g}"):
        check_same("it", expected + 0.4, expected)
    with pytest.raises(EngineError, match="differs by nan"):
        check_same("it", expected * torch.nan, expected)
    with pytest.raises(EngineError, match=r"gives logits \(1, 1\), expected \(1, 2\)"):
        check_same("it", expected[:, :1], expected)


def test_a_gpu_may_differ_by_what_it_rounds():
    assert tolerance(torch.device("cpu")) == TOLERANCE
    assert tolerance(torch.device("cuda:1")) == 10 * TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_engines_of_a_gpu_and_of_the_cpu_are_measured_in_turns(networks):
    pytest.importorskip("onnxruntime")
    engines = ("eager", "onnxruntime")
    measured = bench(networks, engines, (1, 2), device="cuda", threads=1, seconds=0)
    places = {one.latency.engine: one.latency.device for one in measured}
    assert places == {"eager": "cuda:0", "onnxruntime": "cpu"}
    assert all(one.difference <= tolerance(torch.device("cuda")) for one in measured)


def made_up() -> list[Measured]:
    times = {("whole", 1): 0.004, ("small", 1): 0.002, ("whole", 8): 0.02, ("small", 8): 0.016}
    return [
        Measured(name, Latency(time, 0.9 * time, 1.1 * time, 30, batch, "cpu", "eager", 1), 0.0)
        for (name, batch), time in times.items()
    ]


def test_the_table_compares_with_the_first_network_of_each_case():
    lines = [line.split() for line in bench_table(made_up(), {"whole": of(0.9)}).splitlines()]
    assert lines[0][-2:] == ["faster", "accuracy"]
    assert [line[9] for line in lines[1:]] == ["1.00x", "2.00x", "1.00x", "1.25x"]
    assert [line[8] for line in lines[1:]] == ["250", "500", "400", "500"]
    assert lines[1][-2:] == ["90.00", "%"]


def of(accuracy: float, source: str = "somewhere") -> Recorded:
    return Recorded(accuracy, accuracy - 0.02, accuracy + 0.02, 500, source)


def test_accuracies_on_other_images_are_not_drawn_together():
    accuracies = {"whole": of(0.9), "small": of(0.8, "elsewhere")}
    (axes, _) = bench_figure(made_up(), accuracies).axes
    assert axes.get_ylabel() == ""


@pytest.mark.parametrize("accuracies", [{}, {"whole": of(0.9), "small": of(0.8)}])
def test_the_figure_has_a_panel_for_each_batch_size(accuracies):
    figure = bench_figure(made_up(), accuracies)
    assert isinstance(figure, Figure)
    one, eight = figure.axes
    assert (one.get_title(), eight.get_title()) == ("batch size 1", "batch size 8")
    x, y = one.containers[0].lines[0].get_data()
    assert list(x) == pytest.approx([4, 2])
    assert list(y) == ([90, 80] if accuracies else [2, 1])
    assert one.get_ylabel() == ("top-1 accuracy (%)" if accuracies else "")


def test_bench_writes_what_it_measures(run, networks, tmp_path):
    for name, checkpoint in networks.items():
        save(checkpoint, tmp_path / f"{name}.pt")
    command = ("bench", tmp_path / "whole.pt", tmp_path / "small.pt", "--device", "cpu")
    where = ("--batch", "1,2", "--seconds", 0, "--threads", 1, "-o", tmp_path / "out")
    document = run(*command, *where, "--json").document
    cases = [(one["network"], one["batch"]) for one in document["measured"]]
    assert cases == [("whole", 1), ("small", 1), ("whole", 2), ("small", 2)]
    assert (
        json.loads((tmp_path / "out" / "bench.json").read_text())["measured"]
        == (document["measured"])
    )
    assert {"bench.png", "bench.svg", "bench.pdf"} < {
        file.name for file in (tmp_path / "out").iterdir()
    }
    again = run(*command, *where)
    assert again.code == 1
    assert "bench.json already exists" in again.err
    shown = run(*command, *where, "--force").out
    assert "10 interleaved rounds, 1 CPU thread\n" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "eager,nothing"), "unknown engine 'nothing'"),
        (("--threads", 10_000), "cannot use 10000 threads: this machine has"),
        (("--batch", "1,x"), "expected sizes such as 1,8"),
        (("--batch", "0"), "expected sizes such as 1,8"),
    ],
)
def test_a_bench_that_cannot_be_is_refused(run, networks, tmp_path, options, message):
    save(networks["whole"], tmp_path / "whole.pt")
    told = run("bench", tmp_path / "whole.pt", *options, "-o", tmp_path / "out")
    assert told.code in (1, 2)
    assert message in " ".join(told.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_bench_takes_accuracies_from_files_and_says_so(run, networks, tmp_path):
    save(networks["whole"], tmp_path / "whole.pt")
    save(of(0.75, "imagefolder:DIR test").noted(networks["small"]), tmp_path / "small.pt")
    command = ("bench", tmp_path / "whole.pt", tmp_path / "small.pt", "--device", "cpu")
    told = run(*command, "--seconds", 0, "-o", tmp_path / "out").out
    assert "75.00 %" in told
    assert "accuracy of small: of 500 images of imagefolder:DIR test, as its file records" in told
    assert "accuracy of whole" not in told
    first, second = json.loads((tmp_path / "out" / "bench.json").read_text())["measured"]
    assert (first["accuracy"], second["accuracy"]) == (None, 0.75)
    assert second["accuracy_of"] == {"images": 500, "data": "imagefolder:DIR test"}


def test_a_recorded_accuracy_is_of_these_weights_only(networks, tmp_path):
    noted = of(0.75).noted(networks["whole"])
    save(noted, tmp_path / "it.pt")
    assert Recorded.of(load(tmp_path / "it.pt").notes) == of(0.75)
    for changed in (remove(noted, ["layer2.0"]), fold_gates(noted)):
        assert Recorded.of(changed.notes) is None
    wrong = {"measured": {"accuracy": 1.5, "low": 0, "high": 1, "images": 5, "source": ""}}
    with pytest.raises(CheckpointError, match=r"measured.accuracy"):
        save(replace(noted, notes=wrong), tmp_path / "other.pt")


def test_files_of_the_same_name_are_told_apart(run, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(
        bench_module, "rounds_within", lambda *rest: 1
    )  # one round is enough for names
    paths = [tmp_path / folder / "it.pt" for folder in ("a", "b")]
    for path, checkpoint in zip(paths, networks.values(), strict=True):
        path.parent.mkdir()
        save(checkpoint, path)
    document = run("bench", *paths, "--device", "cpu", "-o", tmp_path / "out", "--json").document
    assert [one["network"] for one in document["measured"]] == list(map(str, paths))
