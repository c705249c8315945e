"""``vconv plot``: what is drawn is what was logged; a mistake is one sentence and no file."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from vconv import cli
from vconv.config import Config, DataConfig, TrainConfig, dump_yaml
from vconv.errors import UsageError
from vconv.train.figure import MAX_RUNS, Curves, draw
from vconv.train.plot import plot_command, read_columns

Plot = Callable[..., tuple[int, str]]
MAGIC = {
    "png": b"\x89PNG",
    "svg": b"<?xml",
    "pdf": b"%PDF",
    "jpg": b"\xff\xd8\xff",
    "webp": b"RIFF",
}
VQ = {"heldout_perplexity": 99.0, "heldout_codes_used": 0.7}
VAE = {"heldout_kl": 2.0, "heldout_active_dimensions": 50.0}


def rows(steps: int = 8, **validated: float) -> list[dict[str, float]]:
    """Lines as training writes them; validated at every fourth."""
    lines: list[dict[str, float]] = []
    for number in range(1, steps + 1):
        line = {"step": 50 * number, "nll": 4 + 1 / number, "gradient_norm": 0.5}
        line |= {"learning_rate": 1e-3, "samples_per_second": 1000.0 * number}
        if number % 4 == 0:
            probe = number / 100
            line |= {"heldout_nll": 4.5, **validated, "probe_latents": probe}
            line |= {"probe_latents_low": probe - 0.1, "probe_latents_high": probe + 0.2}
        lines.append(line)
    return lines


def log(folder: Path, lines: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = TrainConfig(batch=4)
    config = Config(data=DataConfig(corpus="c", window=640), train=train)
    (folder / "config.yaml").write_text(dump_yaml(config))
    return folder


def curves(name: str, lines: list[dict[str, float]]) -> Curves:
    names = dict.fromkeys(key for line in lines for key in line)
    columns = {n: np.array([line.get(n, math.nan) for line in lines]) for n in names}
    return Curves(name, columns["step"], columns)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title("left") or axes.get_title() for axes in figure.axes]


@pytest.fixture
def plot(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Plot:
    """The command in a folder with the runs a and b: exit code and what it said."""
    log(tmp_path / "runs/a", rows(**VQ))
    log(tmp_path / "runs/b", rows(**VAE))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = cli._run(["plot", *map(str, arguments)], debug=False)
        out, err = capfd.readouterr()
        assert out == ""
        return code, err

    return call


def drawn(folder: Path = Path()) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "runs")


# -- what is drawn ---------------------------------------------------------------------------------


def test_a_curve_is_the_logged_figures_and_its_band_the_logged_interval() -> None:
    lines = rows()
    figure = draw([curves("a", lines)], keys=["probe_latents"], x_label="step")
    line = figure.axes[0].lines[0]
    assert np.array_equal(line.get_xydata(), [[200, 0.04], [400, 0.08]])
    (band,) = figure.axes[0].collections
    corners = {(float(x), round(float(y), 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(200, -0.06), (200, 0.24), (400, -0.02), (400, 0.28)}


def test_the_standard_figure_has_a_panel_for_all_that_the_runs_have_and_no_empty_one() -> None:
    always = ["Negative log-likelihood", "Probe: another utterance's units"]
    last = ["Learning rate", "Gradient norm", "Throughput"]
    vq = ["Codebook perplexity", "Codes in use, held out"]
    vae = ["KL divergence", "Active dimensions"]
    a, b, c = (curves(n, rows(**more)) for n, more in (("a", VQ), ("b", VAE), ("c", {})))
    for runs, middle in (([a], vq), ([b], vae), ([a, b], vq + vae), ([c], [])):
        figure = draw(runs, x_label="step")
        assert titles(figure) == [*always, *middle, *last]
        assert all(axes.lines for axes in figure.axes)
    with pytest.raises(UsageError, match="something_else"):
        draw([curves("d", [{"step": 1, "something_else": 2.0}])], x_label="step")


def test_health_has_panels_of_its_own_with_a_curve_for_each_part_that_there_is() -> None:
    dead = {"dead_encoder": 0.0, "dead_output": 0.1, "dead_encoder_3": 0.0}
    updates = {"update_speakers": 1e-4, "update_wavenet": 2e-3}
    lines = [line | updates for line in rows(8, heldout_mulaw_error=20.0, **dead)]
    figure = draw([curves("a", lines)], x_label="step")
    assert titles(figure)[2:5] == [
        "Expected error, held out",
        "Dead channels, held out",
        "Change of the weights in a step",
    ]
    legends = [axes.get_legend() for axes in figure.axes[3:5]]
    labels = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend]
    assert labels == [["encoder", "output"], ["speakers", "WaveNet"]]


def test_a_run_keeps_its_colour_in_every_panel_and_its_name_in_the_legend() -> None:
    names = ["_a", "$b$"]  # matplotlib would leave out the one and typeset the other
    figure = draw([curves(name, rows()) for name in names], x_label="step")
    (legend,) = figure.legends
    figure.draw_without_rendering()
    assert [text.get_text().replace(r"\$", "$") for text in legend.get_texts()] == names
    colours = [line.get_color() for line in legend.get_lines()]
    assert len(set(colours)) == 2
    for axes in figure.axes:
        used = [line.get_color() for line in axes.lines if len(line.get_xydata()) > 1]
        assert [c for c in used if c in colours] == colours * (len(used) // 2)


def test_a_long_curve_keeps_its_mean_and_shows_its_outlier() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    values[1234] = 50.0
    lines = [{"step": 10 * i, "loudness": y} for i, y in enumerate(values)]
    figure = draw([curves("a", lines)], keys=["loudness"], x_label="step")
    (line,) = figure.axes[0].lines
    points = line.get_xydata()
    assert len(points) < 500
    # The stretches are equal to within a sample of some eighty.
    assert points.mean(0) == pytest.approx([10 * 9999 / 2, values.mean()], rel=0.02, abs=0.002)
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.max(), heights.min()) == (50.0, values.min())


def test_keys_choose_panels_and_an_interval_is_no_metric_of_its_own() -> None:
    run = curves("a", rows(**VQ))
    figure = draw([run], keys=["nll, heldout_nll", "probe_*"], x_label="step")
    assert titles(figure) == ["nll, heldout_nll", "probe_latents"]


def test_a_single_validation_is_visible() -> None:
    figure = draw([curves("a", rows(4))], keys=["heldout_nll"], x_label="step")
    (line,) = figure.axes[0].lines
    assert line.get_marker() not in ("", "None")


def test_the_axis_in_samples_and_hours_follows_from_batch_window_and_speed(
    plot: Plot, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "vconv.train.plot.draw", lambda runs, **options: seen.append(runs[0].x) or Figure()
    )
    for axis in ("steps", "samples", "hours"):
        assert plot("a", "--x", axis, "-o", f"{axis}.png")[0] == 0
    steps, samples, hours = seen
    assert steps.tolist() == [50 * n for n in range(1, 9)]
    assert samples.tolist() == [50 * n * 4 * 640 for n in range(1, 9)]
    seconds = np.cumsum([50 * 4 * 640 / (1000 * n) for n in range(1, 9)])
    assert hours == pytest.approx(seconds / 3600)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = log(tmp_path / "a", rows(3)) / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 200, "nll": 3.')
    assert read_columns(path)["step"].tolist() == [50, 100, 150]


def test_figures_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    path = log(tmp_path / "a", rows(1)) / "metrics.jsonl"
    path.write_text('{"step": 1, "nll": NaN, "said": "oh"}\n{"step": 2, "nll": 3.5, "x": null}\n')
    columns = read_columns(path)
    assert set(columns) == {"step", "nll"}
    assert np.array_equal(columns["nll"], [math.nan, 3.5], equal_nan=True)
    plot_command([str(path)], output=[str(tmp_path / "a.png")])


# -- files and options -----------------------------------------------------------------------------


def test_several_formats_in_one_call_and_the_same_bytes_again(plot: Plot) -> None:
    for turn in ("one", "two"):
        outputs = [word for kind in MAGIC for word in ("-o", f"{turn}/fig.{kind}")]
        code, said = plot("a", "runs/b", "runs/b/metrics.jsonl", "-k", "nll", *outputs)
        assert code == 0, said
        assert said.splitlines()[0] == f"a, b -> {turn}/fig.png"
    assert drawn(Path("one")) == sorted(f"fig.{kind}" for kind in MAGIC)
    for kind, magic in MAGIC.items():
        data = Path(f"one/fig.{kind}").read_bytes()
        assert data.startswith(magic)
        assert data == Path(f"two/fig.{kind}").read_bytes(), kind


def test_a_figure_is_named_after_its_run_and_not_drawn_over_unless_told(plot: Plot) -> None:
    assert plot("a") == (0, "a -> a.png\n")
    assert plot("a", "b", "-k", "nll") == (0, "a, b -> runs.png\n")
    Path("a.png").write_bytes(b"mine")
    code, said = plot("a", "-o", "new.svg", "-o", "a.png")
    assert (code, said) == (2, "vconv: error: a.png: exists; --overwrite replaces it.\n")
    assert Path("a.png").read_bytes() == b"mine"
    assert plot("a", "--overwrite", "-k", "nll")[0] == 0
    assert Path("a.png").read_bytes().startswith(MAGIC["png"])
    assert drawn() == ["a.png", "runs.png"]


@pytest.mark.parametrize("name", ["plot.json", "plot.yaml"])
def test_a_config_gives_defaults_and_options_override_them(plot: Plot, name: str) -> None:
    values = {"runs": ["a"], "output": "c.svg", "title": "From file", "overwrite": True}
    values |= {"keys": ["nll"], "y_label": "the y", "x": "samples"}
    Path(name).write_text(json.dumps(values, indent="\t" if name.endswith("json") else 1))
    assert plot("-c", name)[0] == 0
    assert plot("-c", name, "--title", "From option", "-o", "o.svg")[0] == 0
    assert plot("b", "-c", name) == (0, "b -> c.svg\n")
    for drawing, text in (("c.svg", "From file"), ("o.svg", "From option")):
        comments = Path(drawing).read_text()
        for words in (text, "the y", "samples trained on"):
            assert f"<!-- {words} -->" in comments
    assert "From file" not in Path("o.svg").read_text()


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to plot"),
        (["runs/a", "-k", "heldout_nl"], 2, "metric heldout_nl; did you mean heldout_nll?"),
        (["a", "-k", "qqqqqqqq"], 2, "there are nll, "),
        (["a", "-k", "*"], 2, "for one panel"),
        (["a", "-k", ","], 2, "for one panel"),
        (["a", "--x", "days"], 2, "found 'days'"),
        (["a", "-o", "fig.gif"], 2, "'.gif' cannot be drawn; allowed are png, svg, pdf"),
        (["a", "-o", "fig"], 2, "'(no suffix)'"),
        (
            ["a", "-k", "nll", "-o", "good.png", "-o", "file/fig.png"],
            2,
            "file/fig.png: cannot be written",
        ),
        (["a", "-o", "folder.png"], 2, "is a folder"),
        (["a", "-c", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read"),
        (["a", "-c", "unknown.yaml"], 2, "unknown.yaml: unknown key tittle; did you mean title?"),
        (["a", "-c", "list.json"], 2, "must be a mapping"),
        (["a", "-c", "damaged.json"], 2, "is not valid JSON"),
        (["ab"], 3, "ab: there is no such run; did you mean "),
        (["runs"], 3, "runs: has no metrics.jsonl"),
        (["a", "empty"], 3, "runs/empty/metrics.jsonl: has no figures yet"),
        (["damaged"], 3, "metrics.jsonl: is damaged: line 2 "),
        (["binary"], 3, "is damaged: line 1 "),
        (["alone.jsonl", "--x", "hours"], 3, "config.yaml: is missing, which --x hours"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_figure(
    plot: Plot, arguments: list[str], code: int, says: str
) -> None:
    for name, text in {
        "file": "",
        "unknown.yaml": "tittle: A",
        "list.json": "[]",
        "damaged.json": "{",
        "alone.jsonl": '{"step": 1, "nll": 2}\n',
    }.items():
        Path(name).write_text(text)
    Path("folder.png").mkdir()
    log(Path("runs/empty"), [])
    (log(Path("runs/damaged"), rows(1)) / "metrics.jsonl").write_text('{"step": 1, "nll": 2}\n{"')
    with Path("runs/damaged/metrics.jsonl").open("a") as file:
        file.write("\n")
    (log(Path("runs/binary"), []) / "metrics.jsonl").write_bytes(b"\xff\x00\n" * 3)
    before = drawn()
    found, said = plot(*arguments)
    assert found == code, said
    assert len(said.splitlines()) == 1
    assert said.startswith("vconv: error: ")
    assert says in said
    assert drawn() == before


def test_more_runs_than_can_be_told_apart_are_refused(plot: Plot) -> None:
    line = '{"step": 1, "nll": 2}\n'
    for number in range(MAX_RUNS + 1):
        Path(f"runs/r{number}").mkdir()
        Path(f"runs/r{number}/metrics.jsonl").write_text(line)
    code, said = plot(*(f"r{number}" for number in range(MAX_RUNS + 1)))
    assert (code, drawn()) == (2, [])
    assert f"at most {MAX_RUNS}" in said
