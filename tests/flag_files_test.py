"""A flags file that is no good: one line that names it, before absl reads anything."""

import os

import pytest
from absl import flags

from experiments.cli.flag_files import MAX_BYTES, MAX_FILES, check_flag_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "good.flags").write_text("# größe\n\n--size=3\r\n// more\n--flagfile=more.flags\n")
    (tmp_path / "more.flags").write_text("--rate=0.5\n")
    (tmp_path / "latin.flags").write_bytes("# größe\n--size=3\n".encode("latin-1"))
    (tmp_path / "binary.flags").write_bytes(b"--size=3\n\x00\x01\n")
    (tmp_path / "self.flags").write_text("--flagfile=./self.flags\n")
    (tmp_path / "a.flags").write_text("--flagfile=b.flags\n")
    (tmp_path / "b.flags").write_text("--size=3\n--flagfile=~/a.flags\n")
    (tmp_path / "lost.flags").write_text("--flagfile=nowhere.flags\n")
    (tmp_path / "bad.flags").write_text("--flagfile=latin.flags\n")
    (tmp_path / "long.flags").write_text("#" * (MAX_BYTES + 1))
    (tmp_path / "loop.flags").symlink_to("loop.flags")
    (tmp_path / "folder.flags").mkdir()
    os.mkfifo(tmp_path / "pipe.flags")
    # Each includes the next twice: 2^20 files to read.
    for number in range(20):
        (tmp_path / f"{number}.flags").write_text(f"--flagfile={number + 1}.flags\n" * 2)
    (tmp_path / "20.flags").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("latin.flags", "latin.flags is not UTF-8 text: byte 4 is 0xf6; save it as UTF-8"),
        ("binary.flags", r"binary.flags is not text: line 2 holds the character '\\x00'"),
        ("self.flags", "self.flags: this file includes itself, by way of self.flags"),
        ("a.flags", "--flagfile=~/a.flags: this file includes itself, by way of b.flags"),
        ("lost.flags", "--flagfile=nowhere.flags cannot be read: No such file"),
        ("bad.flags", "--flagfile=latin.flags is not UTF-8"),
        ("long.flags", "long.flags has 65,537 bytes, but at most 65,536 are read"),
        ("loop.flags", "loop.flags cannot be read: Too many levels of symbolic links"),
        ("folder.flags", "folder.flags cannot be read: Is a directory"),
        ("pipe.flags", "pipe.flags is no file, but a pipe"),
        ("/dev/zero", "--flagfile=/dev/zero is no file, but a pipe or a device"),
        ("0.flags", f"more than {MAX_FILES} flags files"),
        ("", "--flagfile= is empty; name a file"),
        ("a\x1b[2J", r"--flagfile='a\\x1b\[2J' cannot be read: No such file"),
        ("a\udcff", r"--flagfile='a\\udcff' cannot be read: No such file"),
        ("n" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize("form", ["--flagfile={}", "-flagfile={}", "--flagfile {}", "-flagfile {}"])
def test_a_file_that_is_no_good_is_named_in_one_line(name, said, form, folder):
    words = ["--size=1", *form.format(name).split(" ", 1)]
    with pytest.raises(ValueError, match=said) as raised:
        check_flag_files(words)
    assert str(raised.value).isprintable()


def test_what_absl_reads_passes(folder):
    words = ["--flagfile=good.flags", "--flagfile", "~/more.flags", "--", "--flagfile=a.flags"]
    check_flag_files(words)
    values = flags.FlagValues()
    flags.DEFINE_integer("size", 1, "", flag_values=values)
    flags.DEFINE_float("rate", 1, "", flag_values=values)
    assert values(["program", *words])[1:] == ["--flagfile=a.flags"]
    assert (values["size"].value, values["rate"].value) == (3, 0.5)
