"""Settings of a store: a frozen value, and where it comes from.

`<root>/store.json` holds what was fixed when the store was made (`Identity`).  The rest is read, later ones
win, from the defaults below, `<root>/config.toml` and the environment: ARTFS_ and the setting's name in
capitals; a mapping is written as JSON.  Each source is checked by itself: a key of the file that nobody
knows, or a value out of range, is an InvalidError that names the key and the file or variable.

Reading is all that happens here, besides `create_store`, which leaves either a whole store.json or none.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from artfs.durable import sync_directory
from artfs.errors import DamagedError, ExistsError, FormatError, InvalidError, NotFoundError
from artfs.grid import check_id, session_key
from artfs.types import Principal, Scope

FORMAT = 2
"""Of a store as a whole: the files below its root.  docs/format.md has its changes."""

STORE_FILE = "store.json"
CONFIG_FILE = "config.toml"
BEFORE_A_STORE = {
    *(CONFIG_FILE, "lost+found", "lock", "mount.log", "mount.log.1"),
    *("sessions.db", "sessions.db-wal", "sessions.db-shm"),
}
"""What may be in a directory that is to be a store, besides names that begin with a dot, which are file systems'.  The
sessions are those of `artfs.sessions.providers.sqlite`."""
PREFIX = "ARTFS_"
KIB, MIB = 1 << 10, 1 << 20

M = TypeVar("M", bound=BaseModel)
Id32 = Annotated[int, Field(ge=0, lt=2**32 - 1)]


class _Value(BaseModel):
    # allow_inf_nan: a time that never ends is no time to wait.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Identity(_Value):
    """What never changes about a store."""

    format: int = Field(default=FORMAT, ge=1)
    uuid: str
    created: int
    """Nanoseconds since 1970."""
    block_size: int = MIB
    """Bytes of a block in the namespaces that this store makes: a power of two, 128 KiB to 4 MiB."""

    @field_validator("block_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value.bit_count() != 1 or not 128 * KIB <= value <= 4 * MIB:
            raise ValueError("must be a power of two from 131072 (128 KiB) to 4194304 (4 MiB)")
        return value


class Settings(_Value):
    """How a store is run.  Sizes are bytes."""

    block_size: int = MIB
    """From store.json; it can be set nowhere else."""

    # the log and its commits
    journal_size: int = Field(default=128 * MIB, ge=8 * MIB)
    """Of the journal: how much may be acknowledged before the engine has it.  A multiple of 4096."""
    commit_interval: float = Field(default=1.0, gt=0, le=60)
    """Seconds between commits to the engine, at most."""
    wait_limit: float = Field(default=30.0, ge=0)
    """Seconds that a writer waits for room, before ENOSPC or EIO."""

    # memory
    inline_limit: int = Field(default=1792, ge=0, le=64 * KIB)
    """A block with no more unsealed bytes than this keeps them in its row; rows beyond 2 000 bytes leave their page."""
    node_cache: int = Field(default=100_000, ge=1000)
    """Inodes kept in memory besides those that the kernel holds."""

    # objects
    provider: str = ""
    """URL of where the bytes of new namespaces live; empty: in the store's own directory."""
    providers: dict[Scope, str] = Field(default_factory=dict)
    """The same for the namespaces of a scope (`session`, `user`, `sandbox`)."""
    provider_timeout: float = Field(default=30.0, gt=0)
    """Seconds without an answer after which a provider counts as unreachable."""
    compression: Literal["", "zstd"] = ""
    """Of objects of new workspaces, where they leave this directory."""
    encryption_key: str = ""
    """Where the key is with which objects of new namespaces are encrypted before they leave this directory:
    `file:PATH`, `env:NAME` or `command:ARGV`; empty: they are not."""
    durability: Literal["local", "remote"] = "local"
    """`remote`: fsync and close wait until the provider has the bytes."""
    upload_delay: float = Field(default=5.0, ge=0)
    """Seconds that an object which still grows waits at most before it is closed and uploaded."""
    uploads: int = Field(default=8, ge=1, le=64)
    """Objects that are uploaded at once."""
    part_size: int = Field(default=8 * MIB, ge=5 * MIB)
    """Of the parts in which objects beyond 16 MiB are uploaded."""
    drain_limit: float = Field(default=300.0, ge=0)
    """Seconds that an unmount waits for uploads, at most; what is left goes on at the next mount."""
    save_interval: float = Field(default=60.0, gt=0)
    """Seconds between copies of the metadata to the provider, at most, while something changes."""
    cache_size: int = Field(default=10 << 30, ge=64 * MIB)
    """Of local copies of what providers have, and of what waits for upload, together."""
    cache_high: float = Field(default=0.95, gt=0, le=1)
    """Part of `cache_size` at which eviction begins, and from which on writers wait for uploads;"""
    cache_low: float = Field(default=0.85, gt=0, le=1)
    """and down to which it goes."""
    cache_reserve: int = Field(default=1 << 30, ge=0)
    """Kept free on the cache's disk."""
    piece_size: int = Field(default=4 * MIB, ge=64 * KIB)
    """Of what is fetched from a provider at once."""
    fetches: int = Field(default=8, ge=1, le=64)
    """Pieces that are fetched at once."""
    read_ahead: int = Field(default=64 * MIB, ge=0)
    """Fetched ahead of a sequential reader, at most."""
    gc_interval: float = Field(default=600.0, gt=0)
    """Seconds between looks for objects that no row names."""
    gc_grace: float = Field(default=600.0, ge=0)
    """Seconds that such an object is kept after it was first seen."""
    endpoint: str = "127.0.0.1:0"
    """Address and port of the HTTP endpoint for signed URLs; port 0: any."""

    # who
    sandbox: str = "default"
    """Of sessions and paths that name none, and of the principals in `uid_map`."""
    shared_writable: bool = False
    """Whether everyone in a sandbox writes its `shared` scope."""
    uid: Id32 | None = None
    """Owner of what the API makes; None: who runs it."""
    gid: Id32 | None = None
    umask: int = Field(default=0o022, ge=0, le=0o777)
    """In config.toml as `0o022`; in the environment `022` is octal too."""
    uid_map: dict[Id32, str] = Field(default_factory=lambda: {0: "admin"})
    """Who a caller of a checked mount is: `admin`, `user:<id>` or `session:<id>` for a uid.  Root is admin
    unless it is mapped; a uid that is not there is nobody."""
    session_ttl_hours: float = Field(default=24.0, gt=0)

    # the driver
    spin_us: int = Field(default=150, ge=0, le=10_000)
    """Microseconds of busy polling for the next request, then"""
    wait_us: int = Field(default=200, ge=0, le=100_000)
    """of waiting for it without the interpreter's lock, and"""
    burst_us: int = Field(default=5000, ge=0, le=1_000_000)
    """of both in all, before other tasks have their turn."""
    entry_timeout: int = Field(default=86_400, ge=0)
    """Seconds that the kernel of a bound mount may keep names and attributes."""
    max_background: int = Field(default=65_535, ge=1, le=65_535)
    """Requests that the kernel may have queued; the checkpoint barrier wants the largest."""
    read_ahead_kb: int = Field(default=4096, ge=128, le=64 * KIB)
    """KiB that the kernel reads ahead."""
    profile: bool = False
    """Whether `.artfs/stats` counts the time that requests spend in our functions and in the journal."""

    @field_validator("journal_size")
    @classmethod
    def _whole_pages(cls, value: int) -> int:
        if value % 4096:
            raise ValueError("must be a multiple of 4096")
        return value

    @field_validator("encryption_key")
    @classmethod
    def _leads_to_a_key(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if value and not (kind in ("file", "env", "command") and rest.strip()):
            raise ValueError("must be file:PATH, env:NAME or command:ARGV; never the key itself")
        return value

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        parse_address(value)
        return value

    @field_validator("sandbox")
    @classmethod
    def _sandbox_id(cls, value: str) -> str:
        return check_id("sandbox", value)

    @field_validator("umask", mode="before")
    @classmethod
    def _octal(cls, value: Any) -> Any:
        return int(value, 8) if isinstance(value, str) else value

    @field_validator("uid_map", "providers", mode="before")
    @classmethod
    def _json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("uid_map")
    @classmethod
    def _with_root(cls, value: dict[int, str]) -> dict[int, str]:
        for who in value.values():
            parse_principal(who, "default")
        return {0: "admin", **value}

    def principal(self, uid: int) -> Principal | None:
        """Who a caller with that uid is; None: nobody, who sees nothing."""
        who = self.uid_map.get(uid)
        return None if who is None else parse_principal(who, self.sandbox)


def parse_principal(text: str, sandbox: str) -> Principal:
    """`admin` (of every sandbox), `user:<id>` or `session:<id>` (of `sandbox`).  Errors: InvalidError."""
    kind, _, id = text.partition(":")
    if text == "admin":
        return Principal(admin=True)
    if kind == "user":
        return Principal(sandbox, user=check_id("user", id))
    if kind == "session":
        session_key(id)
        return Principal(sandbox, session=id)
    raise InvalidError(f"{text!r} is nobody: use admin, user:<id> or session:<id>")


def parse_address(text: str) -> tuple[str, int]:
    """`host:port`; an IPv6 address in brackets.  Errors: InvalidError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in host and bare == host) or not port.isdecimal() or int(port) > 65535:
        raise InvalidError(f"{text!r} is no address; write host:port, such as 127.0.0.1:0")
    return bare, int(port)


def create_store(root: Path, *, block_size: int = MIB, provider: str = "") -> Identity:
    """Make `root`, readable by its owner alone, and a store.json in it; durable when it returns.  `provider`: the URL
    that a config.toml gets, unless there is one; it is there before the store is.

    Errors: ExistsError if there is a store, InvalidError for a bad block size, or a directory that holds other things.
    """
    fields = {"uuid": str(uuid.uuid4()), "created": time.time_ns(), "block_size": block_size}
    identity = _checked(Identity, fields, "the new store")
    if root.exists() and not root.is_dir():
        raise InvalidError(f"{root} is no directory; choose another --root")
    missing = [path for path in (root, *root.parents) if not path.exists()]
    if not missing:
        require_free(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if provider and not (root / STORE_FILE).exists():
            with suppress(FileExistsError):
                _put(root / CONFIG_FILE, f"provider = {json.dumps(provider)}\n", identity.uuid)
        _put(root / STORE_FILE, json.dumps(identity.model_dump(), indent=2) + "\n", identity.uuid)
    except FileExistsError:
        raise ExistsError(f"{root} holds a store already; choose another --root") from None
    for directory in (root, *(path.parent for path in missing)):
        sync_directory(directory)
    return identity


def require_free(root: Path) -> None:
    """Errors: InvalidError if somebody else's files are there, or those of a store that has lost its store.json."""
    found = {path.name for path in root.iterdir() if not path.name.startswith(".")} - BEFORE_A_STORE
    names = {name for name in found if not (root / name / STORE_FILE).exists()}  # the default root has others below it
    if names and not (root / STORE_FILE).exists():  # looked for later: who makes the store makes that first
        some = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
        raise InvalidError(f"{root} is no store, and not empty ({some}); choose a directory that is new or empty")


def _put(target: Path, text: str, unique: str) -> None:
    """A file that is there wholly or not at all, once its directory is synced.  Errors: FileExistsError, OSError."""
    draft = target.with_name(f".{target.name}.{unique}")
    try:
        with draft.open("x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, target)  # unlike rename, it never replaces another's
    finally:
        draft.unlink(missing_ok=True)


def read_store(root: Path) -> Identity:
    """Errors: NotFoundError, FormatError if a newer artfs made it, DamagedError."""
    path = root / STORE_FILE
    try:
        fields = json.loads(path.read_bytes())
        format = fields["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{root} holds no store; make one with `artfs init --root {root}`") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{path} is damaged: restore it from a backup, or run `artfs fsck`") from None
    if isinstance(format, int) and format > FORMAT:
        raise FormatError(f"{path} has format {format}, this artfs reads up to {FORMAT}: upgrade artfs")
    try:
        return _checked(Identity, fields, str(path))
    except InvalidError as error:
        raise DamagedError(f"{error}: restore the file from a backup, or run `artfs fsck`") from None


def load_settings(root: Path, env: Mapping[str, str] = os.environ) -> Settings:
    """The settings of the store at `root`.  Errors: those of `read_store`, InvalidError."""
    fixed = {"block_size": read_store(root).block_size}
    path = root / CONFIG_FILE
    configured: dict[str, Any] = {}
    try:
        configured = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise InvalidError(f"{path} is no TOML: {error}") from None
    for name in fixed.keys() & configured.keys():
        raise InvalidError(f"{path}: {name} was fixed when the store was made; remove it")
    # Checked before the environment is laid over it, which would hide what is wrong with it.
    _checked(Settings, configured, str(path))
    variables = environment(env)
    for name, value in variables.items():
        _checked(Settings, {name: value}, PREFIX + name.upper())
    settings = _checked(Settings, {**configured, **variables, **fixed}, str(path))
    if settings.cache_low > settings.cache_high:
        raise InvalidError(f"cache_low, {settings.cache_low}, must not be above cache_high, {settings.cache_high}")
    return settings


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The settings that variables give, by name.  Others that begin with ARTFS_ are somebody else's:
    ARTFS_ROOT is that of `artfs.root`.  Errors: InvalidError for ARTFS_BLOCK_SIZE, which would be no setting but a
    wish."""
    if PREFIX + "BLOCK_SIZE" in env:
        raise InvalidError(f"{PREFIX}BLOCK_SIZE: block_size was fixed when the store was made; unset it")
    names = {PREFIX + name.upper(): name for name in Settings.model_fields}
    return {names[variable]: value for variable, value in env.items() if variable in names}


def _checked(model: type[M], fields: Any, source: str) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its content"
        what = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidError(f"{source}: {where}: {what.removeprefix('Value error, ')}") from None
