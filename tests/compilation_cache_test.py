"""The folder of compiled programs: found, or done without in one line."""

import pwd
import warnings
from pathlib import Path

import jax
import pytest

from experiments.cli.compilation_cache import cache_folder, use_compilation_cache

NAMES = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """A user's: nothing is set, and all is as it was afterwards."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_users_own_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == str(tmp_path / "home" / ".cache" / "rnn_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == str(tmp_path / "caches" / "rnn_jax")
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/programs")
    assert cache_folder() == "gs://bucket/programs"
    use_compilation_cache(True)
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"


def test_a_folder_is_made_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    use_compilation_cache(True)
    assert list((tmp_path / "caches" / "rnn_jax").iterdir()) == []
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "caches" / "rnn_jax")
    assert jax.config.jax_enable_compilation_cache
    use_compilation_cache(False)
    assert not jax.config.jax_enable_compilation_cache
    assert capsys.readouterr().err == ""


def test_without_a_home_folder_one_line_says_so(monkeypatch, capsys):
    monkeypatch.delenv("HOME")

    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    use_compilation_cache(True)
    assert not jax.config.jax_enable_compilation_cache
    said = capsys.readouterr().err
    assert said.startswith("no compilation cache (there is no home folder; XDG_CACHE_HOME may name")
    assert said.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for base in (tmp_path / "file", "/proc"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        use_compilation_cache(True)
        assert not jax.config.jax_enable_compilation_cache
        said = capsys.readouterr().err
        assert said.startswith(f"no compilation cache ({base}")
        assert said.count("\n") == 1


def test_of_jax_warnings_over_the_cache_the_first_alone_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
    use_compilation_cache(True)
    for number in range(3):
        said = (
            f"Error writing persistent compilation cache entry for 'jit_{number}': OSError: [Errno "
            "28] No space left on device: 'a/b'"
        )
        warnings.showwarning(UserWarning(said), UserWarning, "compiler.py", 1)
        warnings.showwarning(UserWarning("another"), UserWarning, "compiler.py", 1)
    assert others == ["another"] * 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}/rnn_jax fails (OSError: [Errno 28] No space left on device: 'a/b')" in said
