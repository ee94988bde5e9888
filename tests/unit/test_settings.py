"""Settings: where they come from, which one wins, and what is refused with which words."""

import json
import os
import threading
from pathlib import Path

import pytest

from artfs.errors import ArtfsError, DamagedError, ExistsError, FormatError, InvalidError, NotFoundError
from artfs.root import find_root
from artfs.settings import (
    FORMAT,
    Settings,
    create_store,
    load_settings,
    parse_principal,
    read_store,
)
from artfs.types import ADMIN, Principal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_store(tmp_path / "store")
    return tmp_path / "store"


def test_a_store_is_made_once_and_read_again(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    made = create_store(root, block_size=1 << 18)
    assert read_store(root) == made
    assert (made.format, made.block_size) == (FORMAT, 1 << 18)
    assert root.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in root.iterdir()] == ["store.json"]
    with pytest.raises(ExistsError, match="holds a store already"):
        create_store(root)
    assert read_store(root) == made
    assert [path.name for path in root.iterdir()] == ["store.json"]
    assert load_settings(root, {}).block_size == 1 << 18


@pytest.mark.parametrize("names", [["notes.txt"], ["meta.db", "journal", "objects"], list("abcdef")])
def test_a_directory_of_others_does_not_become_a_store(tmp_path: Path, names: list[str]) -> None:
    for name in (*names, "lost+found"):
        (tmp_path / name).mkdir()
    with pytest.raises(InvalidError, match=r"is no store, and not empty \(") as error:
        create_store(tmp_path)
    assert sorted(names)[0] in str(error.value) and "lost+found" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "lost+found"}


def test_a_directory_that_is_prepared_becomes_one(tmp_path: Path) -> None:
    for name in ("lost+found", ".snapshot", ".gitkeep"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text("commit_interval = 0.5\n")
    create_store(tmp_path / "bucket")  # as the Python API has it below the default root
    (tmp_path / "sessions.db").touch()
    assert create_store(tmp_path) == read_store(tmp_path)
    assert load_settings(tmp_path, {}).commit_interval == 0.5


def test_one_of_many_makers_wins(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> None:
        try:
            made.append(create_store(tmp_path).uuid)
        except ExistsError:
            pass

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [read_store(tmp_path).uuid]


@pytest.mark.parametrize("size", [0, 1 << 16, 1 << 23, (1 << 20) + 1, 3 << 18])
def test_bad_block_sizes(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidError, match="block_size: must be a power of two"):
        create_store(tmp_path / "store", block_size=size)
    assert not (tmp_path / "store").exists()


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidError, match="is no directory"):
        create_store(tmp_path / "file")
    with pytest.raises(NotFoundError, match="artfs init --root"):
        read_store(tmp_path / "file")
    with pytest.raises(NotFoundError, match="artfs init --root"):
        read_store(tmp_path)


GOOD = {"format": FORMAT, "uuid": "u", "created": 1, "block_size": 1 << 20}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", DamagedError),
        ("[]", DamagedError),
        ("{}", DamagedError),
        (json.dumps(GOOD)[:-1], DamagedError),
        (json.dumps({**GOOD, "block_size": 5}), DamagedError),
        (json.dumps({**GOOD, "format": "x"}), DamagedError),
        (json.dumps({**GOOD, "extra": 1}), DamagedError),
        (json.dumps({"format": FORMAT + 1, "all": "different"}), FormatError),
    ],
)
def test_a_bad_store_file(root: Path, content: str, error: type[ArtfsError]) -> None:
    (root / "store.json").write_text(content)
    with pytest.raises(error, match=r"store\.json"):
        load_settings(root, {})


def test_defaults() -> None:
    settings = Settings()
    assert (settings.commit_interval, settings.wait_limit, settings.inline_limit) == (1.0, 30.0, 1792)
    assert (settings.journal_size, settings.node_cache) == (128 << 20, 100_000)
    assert (settings.umask, settings.sandbox, settings.shared_writable) == (0o022, "default", False)
    assert settings.principal(0) == ADMIN
    assert settings.principal(1000) is None


def test_the_environment_wins_over_the_file_over_the_defaults(root: Path) -> None:
    (root / "config.toml").write_text(
        """
        commit_interval = 2
        wait_limit = 5.5
        umask = 0o077
        sandbox = "web"
        [uid_map]
        1000 = "user:ann"
        1001 = "session:sess-x"
        """
    )
    env = {
        "ARTFS_COMMIT_INTERVAL": "0.5",
        "ARTFS_SHARED_WRITABLE": "true",
        "ARTFS_UMASK": "027",
        "ARTFS_ROOT": "/x",
        "OTHER": "1",
    }
    settings = load_settings(root, env)
    assert (settings.commit_interval, settings.wait_limit) == (0.5, 5.5)
    assert (settings.umask, settings.shared_writable) == (0o027, True)
    assert load_settings(root, {}).umask == 0o077
    assert settings.principal(0) == ADMIN
    assert settings.principal(1000) == Principal("web", user="ann")
    assert settings.principal(1001) == Principal("web", session="sess-x")
    mapped = load_settings(root, {"ARTFS_UID_MAP": '{"0": "user:root", "7": "admin"}'})
    assert mapped.principal(0) == Principal("web", user="root")
    assert mapped.principal(7) == ADMIN
    assert mapped.principal(1000) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("comit_interval = 1", "config.toml: comit_interval: there is no such setting"),
        ("[driver]\nspin_us = 1", "config.toml: driver: there is no such setting"),
        ("commit_interval = 0", "config.toml: commit_interval: Input should be greater than 0"),
        ("commit_interval = nan", "config.toml: commit_interval"),
        ("wait_limit = inf", "config.toml: wait_limit"),
        ("journal_size = 8388609", "config.toml: journal_size: must be a multiple of 4096"),
        ("journal_size = 4096", "config.toml: journal_size"),
        ("block_size = 1048576", "config.toml: block_size was fixed when the store was made"),
        ("encryption_key = '5a5a'", "config.toml: encryption_key: must be file:PATH, env:NAME or command:ARGV"),
        ("encryption_key = 'env:'", "config.toml: encryption_key: must be"),
        ("endpoint = 'here'", "config.toml: endpoint: 'here' is no address; write host:port"),
        ("cache_low = 0.96", "cache_low, 0.96, must not be above cache_high, 0.95"),
        ("compression = 'gzip'", "config.toml: compression"),
        ("providers = {team = 'memory:'}", "config.toml: providers"),
        ("sandbox = 'grid'", "config.toml: sandbox: sandbox id 'grid' is a reserved word"),
        ("umask = '9'", "config.toml: umask"),
        ("uid_map = {5 = 'ann'}", "config.toml: uid_map: 'ann' is nobody"),
        ("uid_map = {5 = 'user:a b'}", "config.toml: uid_map: user id 'a b' is not valid"),
        ("uid_map = {bob = 'admin'}", "config.toml: uid_map.bob"),
        ("uid_map = {-1 = 'admin'}", "config.toml: uid_map.-1"),
        ("commit_interval", "config.toml is no TOML"),
    ],
)
def test_what_is_wrong_is_named(root: Path, config: str, words: str) -> None:
    (root / "config.toml").write_text(config)
    with pytest.raises(InvalidError) as caught:
        # What is wrong with the file is said even where the environment replaces it.
        load_settings(root, {"ARTFS_COMMIT_INTERVAL": "1", "ARTFS_UID_MAP": "{}"})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ARTFS_COMMIT_INTERVAL", "soon"),
        ("ARTFS_BLOCK_SIZE", "1048576"),
        ("ARTFS_UID_MAP", "[]"),
        ("ARTFS_UID_MAP", "{"),
        ("ARTFS_UMASK", "8"),
        ("ARTFS_SHARED_WRITABLE", "perhaps"),
    ],
)
def test_a_bad_variable_is_named(root: Path, variable: str, value: str) -> None:
    with pytest.raises(InvalidError, match=variable):
        load_settings(root, {variable: value})


def test_every_setting_can_come_from_the_environment(root: Path) -> None:
    for name, value in Settings().model_dump(exclude={"block_size", "uid_map"}, exclude_none=True).items():
        written = oct(value)[2:] if name == "umask" else str(value)
        assert load_settings(root, {f"ARTFS_{name.upper()}": written}) == Settings(), name
    assert load_settings(root, {"ARTFS_UID": "5", "ARTFS_GID": "6"}) == Settings(uid=5, gid=6)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Settings(), "umask", 0)  # noqa: B010 - mypy would refuse the plain way


def test_find_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    env = {"ARTFS_ROOT": "/srv/store"}
    assert find_root("/opt/x", env) == Path("/opt/x")
    assert find_root("rel/../x", env) == tmp_path / "x"
    assert find_root("~/x", env) == tmp_path / "x"
    assert find_root(None, env) == Path("/srv/store")
    assert find_root(None, {"ARTFS_ROOT": "~/y"}) == tmp_path / "y"
    assert find_root(None, {}) == find_root(None, {"ARTFS_ROOT": ""}) == tmp_path / ".local/share/artfs"
    with pytest.raises(InvalidError, match="cannot be empty"):
        find_root("", env)
    (tmp_path / "one.db").write_bytes(b"")
    assert find_root("~/one.db", env) == tmp_path / "one.db"
    (tmp_path / "one.db-artfs").mkdir()
    assert find_root("~/one.db", env) == find_root("one.db-artfs", env) == tmp_path / "one.db-artfs"


def test_parse_principal() -> None:
    assert parse_principal("admin", "web") == ADMIN
    assert parse_principal("user:ann", "web") == Principal("web", user="ann")
    for bad in ("", "user", "user:", "session:", "session:a/b", "admin:x", "root", "User:x"):
        with pytest.raises(InvalidError):
            parse_principal(bad, "web")


def test_a_provider_is_there_before_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in between leaves no store whose bytes would stay here."""
    root, link = tmp_path / "store", os.link
    monkeypatch.setattr(os, "link", lambda draft, target: link(draft, target) if target.suffix == ".toml" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        create_store(root, provider="s3://bucket")
    assert sorted(path.name for path in root.iterdir()) == ["config.toml"]
    monkeypatch.undo()
    create_store(root, provider="s3://other")
    assert load_settings(root).provider == "s3://bucket"  # whoever was first, or wrote it by hand


def test_a_store_that_is_there_gets_no_provider(tmp_path: Path) -> None:
    create_store(tmp_path)
    with pytest.raises(ExistsError):
        create_store(tmp_path, provider="s3://bucket")
    assert not (tmp_path / "config.toml").exists()
