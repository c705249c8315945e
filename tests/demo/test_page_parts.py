"""The page's parts without a server: files, jobs, runs, limits, conversions, the command."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vconv
from command_line import Run
from speech import speechlike
from vconv.demo import conversion, runs, serve
from vconv.demo.conversion import Doing, Done, Stopped, mixture, wish
from vconv.demo.jobs import Job, Jobs
from vconv.demo.limits import Limits
from vconv.demo.session_files import SessionFiles
from vconv.demo.settings import KEPT_JOBS
from web_page import training_run


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SessionFiles:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return SessionFiles()


def test_a_sessions_files_end_with_it_and_no_others(files: SessionFiles) -> None:
    mine, theirs = files.folder("me"), files.folder("you")
    addresses = []
    for session, folder in (("me", mine), ("you", theirs)):
        (folder / "a.wav").write_text(session)
        addresses.append(files.offer(session, folder / "a.wav", "a.wav").rpartition("/")[2])
    assert len(set(addresses)) == 2
    assert min(map(len, addresses)) >= 24
    files.end_session("me")
    assert not mine.exists()
    assert files.offered(addresses[0]) is None
    assert files.offered(addresses[1]) == (theirs / "a.wav", "a.wav")


def test_an_upload_that_two_have_stays_for_the_second(files: SessionFiles) -> None:
    upload = files.uploads / "hash" / "a.wav"
    upload.parent.mkdir()
    upload.write_text("same")
    files.uses("me", upload)
    files.uses("you", upload)
    files.end_session("me")
    assert upload.exists()
    files.end_session("you")
    assert not upload.parent.exists()


def test_nothing_outside_is_ever_removed(files: SessionFiles, tmp_path: Path) -> None:
    precious = tmp_path / "precious.wav"
    precious.write_text("mine")
    files.uses("me", precious)
    files.end_session("me")
    assert precious.exists()


def test_the_oldest_results_of_a_session_make_room(files: SessionFiles) -> None:
    folders = [files.folder("me") for _ in range(KEPT_JOBS + 3)]
    assert [each.exists() for each in folders] == [False] * 3 + [True] * KEPT_JOBS


def test_what_a_killed_server_left_is_removed_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead, alive, link = (tmp_path / f"vconv-page-{name}" for name in ("dead", "alive", "link"))
    for folder, owner in ((dead, 2**22 + 1), (alive, os.getpid())):
        folder.mkdir()
        (folder / "owner").write_text(str(owner))
    link.symlink_to(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        files = SessionFiles()
        assert [dead.exists(), alive.exists(), link.is_symlink()] == [False, True, True]
        files.close()
        assert not files.root.exists()


def test_only_who_began_a_job_can_stop_it() -> None:
    jobs = Jobs()
    with jobs.begin("me", "token-of-mine-0123") as job:
        assert not jobs.stop("you", "token-of-mine-0123")
        assert not job.stopped.is_set()
        with jobs.begin("you", "token-of-mine-0123") as other:  # a copied token is replaced
            assert other.token != job.token
        assert jobs.stop("me", "token-of-mine-0123")
        assert job.stopped.is_set()
    assert jobs.find("token-of-mine-0123") is None


def test_a_job_that_is_cancelled_in_the_queue_never_begins() -> None:
    jobs = Jobs()
    jobs.stop("me", "token-of-mine-0123")
    with jobs.begin("me", "token-of-mine-0123") as job:
        assert job.stopped.is_set()


def work(path: Path, folder: Path, job: Job, **options: object) -> list[Doing | Done]:
    from tiny_model import exported

    wanted = wish(options.pop("speaker", "bea"), **options)
    converter = vconv.load(exported())
    return list(conversion.convert(converter, str(path), wanted, job, folder, max_seconds=60))


@pytest.mark.parametrize("level", ["keep", "peak"])
def test_a_conversion_of_the_pages_is_the_librarys(tmp_path: Path, level: str) -> None:
    from tiny_model import exported

    path = tmp_path / "in.wav"
    soundfile.write(path, speechlike(30_000), 22_050)
    *steps, done = work(path, tmp_path, Job("me", "t"), seed=5, level=level)
    theirs = vconv.load(exported()).convert(path, speaker="bea", seed=5, lanes=1, level=level)
    assert isinstance(done, Done)
    np.testing.assert_array_equal(done.result, theirs.audio)
    assert len(done.source) == pytest.approx(30_000 * 16_000 / 22_050, abs=1)
    assert all(isinstance(step, Doing) for step in steps)


def test_what_is_heard_live_is_all_of_the_result(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    soundfile.write(path, speechlike(40_000), 16_000)
    job = Job("me", "t")
    *_, done = work(path, tmp_path, job)
    assert isinstance(done, Done)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "live.f32", np.float32), done.result)
    assert job.over.is_set()


def test_a_stopped_job_stops_within_a_chunk(tmp_path: Path) -> None:
    from tiny_model import exported

    path = tmp_path / "in.wav"
    soundfile.write(path, np.tile(speechlike(160_000), 5), 16_000)
    job = Job("me", "t")
    made = conversion.convert(
        vconv.load(exported()), str(path), wish("bea"), job, tmp_path, max_seconds=60
    )
    next(made)
    threading.Timer(0.2, job.stopped.set).start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        list(made)
    assert time.monotonic() - begun < 3


def test_silence_is_said_and_errors_name_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "quiet.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    *_, done = work(path, tmp_path, Job("me", "t"))
    assert isinstance(done, Done)
    assert done.notes == ("The recording is silent.",)
    path.write_bytes(b"")
    with pytest.raises(vconv.InputError, match=r"^quiet\.wav: is empty\.$"):
        work(path, tmp_path, Job("me", "t"))


def test_a_form_is_checked() -> None:
    assert mixture("a", "b", 0.25) == {"a": 0.75, "b": 0.25}
    assert mixture("a", "b", 0) == mixture("a", None, 0.5) == mixture("a", "a", 0.5) == {"a": 1.0}
    assert mixture("a", "b", 1) == {"b": 1.0}
    for given in ({"seed": -1}, {"seed": "x"}, {"temperature": 3}, {"temperature": float("nan")}):
        with pytest.raises(vconv.UsageError):
            wish("a", **given)
    with pytest.raises(vconv.UsageError, match="No voice is chosen"):
        mixture(None, None, 0)
    with pytest.raises(vconv.UsageError, match="level"):
        wish("a", level="loud")


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    run = training_run(tmp_path)
    steps = runs.read_metrics(run)
    assert max(steps) == 3000  # the torn line is left out
    assert runs.run_names(tmp_path) == ["first"]
    assert runs.sample_steps(run) == ["step-000002000", "step-000001000"]
    titles = [each.title for each in runs.conversions(run, "step-000001000")]
    assert titles == ["ada, copied", "ada as bea"]
    assert runs.checkpoints(run) == [3000]
    (run / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(vconv.InputError, match=r"line 1 of its metrics\.jsonl is damaged"):
        runs.read_metrics(run)


def test_no_name_leads_out_of_a_runs_samples(tmp_path: Path) -> None:
    run = training_run(tmp_path)
    secret = tmp_path / "secret.wav"
    secret.write_text("secret")
    (run / "samples" / "step-000001000" / "link.wav").symlink_to(secret)
    step = "step-000001000"
    assert runs.sample_file(run, step, "1-ada-to-ada.wav") is not None
    for name in ("link.wav", "../../metrics.jsonl", "..", "samples.json", "/etc/passwd", ".a.wav"):
        assert runs.sample_file(run, step, name) is None
    assert runs.sample_file(run, "..", "1-ada-to-ada.wav") is None
    assert runs.find_run(tmp_path, "..") is None


def asked(path: str, body: bytes = b"", host: str = "127.0.0.1:7860") -> int | None:
    """The status with which the limits answer; None where they let it through."""
    answers: list[int] = []

    async def inside(scope: object, receive: object, send: object) -> None:
        message = await receive()  # type: ignore[operator]
        while message.get("more_body"):
            message = await receive()  # type: ignore[operator]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    limits = Limits(inside, uploads=Path("/up"), upload_bytes=1000, hosts=("127.0.0.1",))
    headers = [(b"host", host.encode())]
    scope = {"type": "http", "path": path, "method": "POST", "headers": headers}
    asyncio.run(limits(scope, receive, send))
    return answers[0] if answers else None


def test_limits_let_pass_what_is_allowed_and_nothing_else() -> None:
    def call(path: str) -> bytes:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        return json.dumps({"data": [[{"deep": file}]]}).encode()

    join = "/gradio_api/queue/join"
    assert asked(join, call("/up/abc/a.wav")) is None
    for bad in ("/up/../etc/passwd", "/etc/passwd", "a.wav", "http://x/a", "file:///a", "//x/a"):
        assert asked(join, call(bad)) == 422, bad
    assert asked(join, b"x" * 1_000_001) == 413
    assert asked("/gradio_api/upload", b"x" * 8_000) is None
    assert asked("/gradio_api/upload", b"x" * 8_001) == 413
    assert asked("/", host="evil.example") == 403
    assert asked("/gradio_api/file=https://x/") == 403


def test_without_gradio_the_command_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    done = run("demo", "--no-open")
    assert done.code == 5
    assert done.err == (
        "vconv: error: gradio is missing, which the page is made with; install it: "
        "pip install 'vconv[demo]'.\n"
    )
    assert run("demo", "--max-seconds", "0").code == 2
    assert run("demo", "--queue", "0").code == 2


def test_the_next_free_port_is_taken_unless_one_is_asked_for() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(vconv.SetupError, match=f"port {port} of 127.0.0.1"):
            serve.free_port("127.0.0.1", port)
    assert 7860 <= serve.free_port("127.0.0.1", None) < 7960
    with pytest.raises(vconv.UsageError):
        serve.free_port("127.0.0.1", 70_000)
