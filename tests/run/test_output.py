"""Results appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from totalvi.errors import OutputError
from totalvi.run import folder as output
from totalvi.run.folder import require_writable, staged_file, staged_folder


def tree(folder: Path) -> dict[str, str | None]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() if p.is_file() else None
        for p in folder.rglob("*")
    }


def record(text: str) -> str:
    return json.dumps({"versions": {"totalvi": text}})


def write(folder: Path, text: str) -> None:
    (folder / "run.json").write_text(record(text))
    (folder / "tables").mkdir()


@pytest.mark.parametrize("name", ["out", "new/folders/out"])
def test_folder_appears_when_done(tmp_path: Path, name: str) -> None:
    with staged_folder(tmp_path / name) as staged:
        write(staged, "1")
        assert not (tmp_path / name).exists()
        assert staged.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert tree(tmp_path / name) == {"run.json": record("1"), "tables": None}
    assert {p.name for p in tmp_path.iterdir()} == {name.split("/")[0]}


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    with staged_folder(tmp_path / "old") as staged:
        write(staged, "1")
    before = tree(tmp_path)
    for name in ("old", "new", "deep/new"):
        with pytest.raises(failure):
            _write_and_fail(tmp_path / name, failure)
        assert tree(tmp_path) == before


def _write_and_fail(output: Path, failure: type[BaseException]) -> None:
    with staged_folder(output, overwrite=True) as staged:
        write(staged, "2")
        raise failure


def _replace_and_fail(target: Path) -> None:
    with staged_file(target, suffix=".h5mu", overwrite=True) as staged:
        staged.write_text("2")
        (staged / "nothing").read_text()


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staged:
        write(staged, "1")
        (staged / "tables" / "old.csv").write_text("")
    with staged_folder(tmp_path / "out", overwrite=True) as staged:
        write(staged, "2")
    assert tree(tmp_path) == {"out": None, "out/run.json": record("2"), "out/tables": None}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out") as staged:
        write(staged, "1")
    assert (tmp_path / "out" / "run.json").exists()


def test_what_is_not_a_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        require_writable(tmp_path / "thesis")
    with pytest.raises(OutputError, match=r"holds no run\.json"):
        require_writable(tmp_path / "thesis", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        require_writable(tmp_path / "thesis" / "chapter.txt")
    with pytest.raises(OutputError, match="is a file"):
        require_writable(tmp_path / "thesis" / "chapter.txt" / "out")


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"versions": 1}', '{"versions": {}}'])
def test_the_record_of_something_else_is_not_a_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"holds no run\.json of totalvi"):
        require_writable(tmp_path / "out", overwrite=True)


def test_a_file_added_to_a_run_is_never_deleted(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staged:
        write(staged, "1")
    require_writable(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"move notes\.txt elsewhere"):
        require_writable(tmp_path / "out", overwrite=True)


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for text in ("1", "2"):
        with staged_folder(tmp_path / "link", overwrite=True) as staged:
            write(staged, text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "empty" / "run.json").read_text() == record(text)
    assert {p.name for p in tmp_path.iterdir()} == {"empty", "link"}


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("dangling", "loop"):
        with pytest.raises(OutputError, match="link to nothing"):
            require_writable(tmp_path / name)


def test_a_folder_that_cannot_be_moved_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="mount point"):
        require_writable(Path("/"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "nothing/..", ".."):
        with pytest.raises(OutputError, match="current folder"):
            require_writable(Path(name))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(OutputError, match="mount point"):
        require_writable(tmp_path / "disk")


def test_dots_are_resolved(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "nothing" / ".." / "out") as staged:
        write(staged, "1")
    assert tree(tmp_path) == {"out": None, "out/run.json": record("1"), "out/tables": None}


def test_no_permission_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot write in"):
        require_writable(tmp_path / "out")


def test_file_appears_when_done(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.h5mu"
    with staged_file(target, suffix=".h5mu") as staged:
        assert staged.suffix == ".h5mu"
        staged.write_text("1")
    assert target.read_text() == "1"
    with pytest.raises(OutputError, match="exists"), staged_file(target, suffix=".h5mu"):
        pass
    with pytest.raises(OutputError, match="Not a directory"):
        _replace_and_fail(target)
    assert tree(tmp_path) == {"new": None, "new/a.h5mu": "1"}
    with staged_file(target, suffix=".h5mu", overwrite=True) as staged:
        staged.write_text("3")
    assert target.read_text() == "3"


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.h5mu").mkdir()
    for name, wrong in (("a.h5ad", "does not end in .h5mu"), ("folder.h5mu", "is a folder")):
        with pytest.raises(OutputError, match=wrong), staged_file(tmp_path / name, suffix=".h5mu"):
            pass


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_folder(out) as staged:
        write(staged, "1")
    for name in (".report.html.partial.html", ".report.html.lock"):
        (out / name).write_text("<html>")
    require_writable(out, overwrite=True)  # neither is of anybody else
    with staged_file(out / "report.html", suffix=".html") as report:
        assert report.read_text() == ""
        report.write_text("whole")
    assert {path.name for path in out.iterdir()} == {"report.html", "run.json", "tables"}
    (out / ".report.htm").write_text("mine")
    with pytest.raises(OutputError, match=r"holds \.report\.htm, which no run wrote"):
        require_writable(out, overwrite=True)


def test_a_file_that_another_process_wrote_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.h5mu"

    @contextmanager
    def just_freed(target: Path) -> Iterator[None]:
        target.write_text("theirs")
        yield

    monkeypatch.setattr(output, "locked", just_freed)
    with pytest.raises(OutputError, match="exists"), staged_file(target, suffix=".h5mu"):
        pass
    assert tree(tmp_path) == {"a.h5mu": "theirs"}


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "a.h5mu"
    with staged_file(target, suffix=".h5mu") as staged:
        staged.write_text("1")
        with (
            pytest.raises(OutputError, match="is being written by another process"),
            staged_file(target, suffix=".h5mu"),
        ):
            pass
    assert tree(tmp_path) == {"a.h5mu": "1"}
