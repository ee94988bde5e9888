"""The names of the Python API: each can be imported from where it is promised, and nothing is loaded before."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import artfs

ROOT = Path(__file__).parents[2]

MODELS = """ArtifactEnvelope ArtifactMetadata AccessContext GridKeyComponents BatchStoreItem StreamUploadRequest
    StreamDownloadRequest MultipartUploadInitRequest MultipartUploadPart MultipartUploadCompleteRequest"""
TYPES = """StorageScope StorageProvider SessionProvider NamespaceType OperationStatus DEFAULT_TTL
    DEFAULT_PRESIGN_EXPIRES DEFAULT_SESSION_TTL_HOURS DEFAULT_BUCKET DEFAULT_SANDBOX_PREFIX ProviderStatus
    ValidationResponse SessionStats StorageStats StatsResponse SessionInfo SandboxInfo PresignedUploadResponse
    MultipartUploadInitResponse UpdateMetadataResponse BatchStoreResponse NamespaceInfo WorkspaceInfo CheckpointInfo
    ArtifactID SessionID SandboxID UserID WorkspaceID NamespaceID"""
EXCEPTIONS = """ArtifactStoreError ArtifactNotFoundError ArtifactExpiredError ArtifactCorruptedError ProviderError
    SessionError AccessDeniedError QuotaExceededError"""

NAMES = {
    "artfs": f"""ArtifactStore {MODELS} {TYPES} {EXCEPTIONS} CoreStorageOperations PresignedURLOperations
        MetadataOperations BatchOperations AdminOperations NamespaceOperations AsyncVirtualFileSystem create_store
        quick_store configure_logging _DEFAULT_TTL _DEFAULT_PRESIGN_EXPIRES __version__""",
    "artfs.models": MODELS,
    "artfs.types": TYPES,
    "artfs.exceptions": EXCEPTIONS,
    "artfs.grid": """canonical_prefix artifact_key parse is_valid_grid_key validate_grid_key GridError _ROOT
        _validate_component""",
    "artfs.access_control": "check_access can_modify build_context",
    "artfs.config": """configure_memory configure_filesystem configure_sqlite configure_s3 configure_ibm_cos
        configure_redis_session create_store development_setup testing_setup production_setup""",
    "artfs.store": "ArtifactStore _DEFAULT_TTL",
    "artfs.namespace": "NamespaceOperations",
    "artfs.vfs": "AsyncVirtualFileSystem BatchResult NodeInfo",
    "artfs.sessions": """SessionManager SessionMetadata factory_for_env ProviderError SessionError get_session session
        SessionStatus ProviderType""",
    "artfs.sessions.session_manager": "SessionManager SessionMetadata",
    "artfs.sessions.provider_factory": "factory_for_env",
    "artfs.sessions.exceptions": "ProviderError SessionError",
    "artfs.sessions.providers.memory": "factory",
    "artfs.sessions.providers.redis": "factory _RedisSession",
    "artfs.pages": """ArtifactsBridge InMemoryBackend MemoryPage Modality StorageTier PageTable WorkingSetManager
        CheckpointManifest CheckpointEntry PageMetadata StorageStats""",
    "artfs.skills": "FileStorage RedisStorage Session",
    "artfs.skills.execution": "SubprocessConfig SubprocessExecutor",
    "artfs.skills.store": "main",
}
METHODS = {
    ("artfs.sessions", "SessionManager"): """allocate_session validate_session get_session_info get_session_metadata
        update_session_metadata extend_session_ttl delete_session cleanup_expired_sessions get_cache_stats
        get_canonical_prefix generate_artifact_key parse_grid_key get_session_prefix_pattern""",
    ("artfs", "ArtifactStore"): """create_namespace write_namespace read_namespace get_namespace_vfs get_namespace_info
        list_namespaces destroy_namespace checkpoint_namespace list_checkpoints restore_namespace delete_checkpoint
        create_session validate_session get_session_info update_session_metadata extend_session_ttl delete_session
        cleanup_expired_sessions get_canonical_prefix generate_artifact_key parse_grid_key get_session_prefix_pattern
        as_principal close""",
    ("artfs.vfs", "AsyncVirtualFileSystem"): """ls mkdir rmdir cd pwd is_dir is_file exists touch rm cp mv find
        write_file read_file write_text read_text write_binary read_binary set_metadata get_metadata get_node_info
        batch_create_files batch_read_files batch_write_files batch_delete_paths stream_write stream_read write_stream
        read_stream list_directory get_storage_stats get_provider_name generate_presigned_url initialize cleanup
        close""",
    ("artfs.sessions.providers.redis", "_RedisSession"): "setex get set delete close",
    ("artfs.sessions.providers.memory", "MemoryProvider"): "setex get set delete close",
    ("artfs.sessions.providers.sqlite", "SqliteProvider"): "setex get set delete close",
}
PLACES = [("artfs", "ArtifactStore"), ("artfs.vfs", "AsyncVirtualFileSystem"), ("artfs.sessions", "SessionManager")]
EVERY = [(module, name) for module, names in NAMES.items() for name in names.split()]

NOT_BUILT = {module: names for module, names in NAMES.items() if module.startswith(("artfs.pages", "artfs.skills"))}
"""What comes with pages and with skills.  A name that exists may not stay here."""
MISSING = {(module, name) for module, names in NOT_BUILT.items() for name in names.split()}


def exists(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError as error:  # the module, or the one that has the name
        if error.name is None or not error.name.startswith("artfs."):
            raise
        return False


@pytest.mark.parametrize(("module", "name"), EVERY)
def test_each_name_exists_or_is_said_not_to(module: str, name: str) -> None:
    assert exists(module, name) == ((module, name) not in MISSING)


def test_what_is_not_built_is_promised() -> None:
    assert set(EVERY) >= MISSING


@pytest.mark.parametrize(("place", "names"), METHODS.items())
def test_methods(place: tuple[str, str], names: str) -> None:
    found = getattr(import_module(place[0]), place[1])
    assert [name for name in names.split() if not callable(getattr(found, name, None))] == []


@pytest.mark.parametrize(("module", "name"), [place for place in EVERY if place not in MISSING])
def test_each_name_says_what_it_is(module: str, name: str) -> None:
    found = getattr(import_module(module), name)
    if found is not str and (inspect.isclass(found) or inspect.isroutine(found)):
        said = found.__dict__.get("__doc__") if inspect.isclass(found) else found.__doc__
        assert said and len(said.split()) >= 3


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_each_call_says_what_it_does(module: str, name: str) -> None:
    owner = getattr(import_module(module), name)
    public = {call: inspect.getattr_static(owner, call) for call in dir(owner) if not call.startswith("_")}
    assert [call for call, found in public.items() if _is_code(found) and not found.__doc__] == []
    assert [call for call, found in public.items() if inspect.isroutine(found) and not _tells_errors(owner, call)] == []


def _tells_errors(owner: type, call: str) -> bool:
    """In its own docstring, or for all calls of its group."""
    home = next(base for base in owner.__mro__ if call in base.__dict__)
    texts = (getattr(home, call).__doc__, home.__doc__, sys.modules[home.__module__].__doc__)
    return any("Errors" in (text or "") for text in texts)


def _is_code(found: object) -> bool:
    return inspect.isroutine(found) or isinstance(found, property)


def test_types_are_shipped() -> None:
    assert (ROOT / "artfs" / "py.typed").is_file()
    for module, name in PLACES:
        owner = getattr(import_module(module), name)
        for call in (call for call in dir(owner) if not call.startswith("_")):
            found = inspect.getattr_static(owner, call)
            if inspect.isfunction(found):
                hints = inspect.signature(found)
                assert hints.return_annotation is not hints.empty, call
                bare = [one.name for one in hints.parameters.values() if one.annotation is one.empty]
                assert set(bare) <= {"self", "cls"}, call


def test_numbers() -> None:
    assert (artfs.DEFAULT_TTL, artfs._DEFAULT_TTL) == (900, 900)
    assert (artfs.DEFAULT_PRESIGN_EXPIRES, artfs._DEFAULT_PRESIGN_EXPIRES) == (3600, 3600)
    assert (artfs.DEFAULT_SESSION_TTL_HOURS, artfs.DEFAULT_BUCKET) == (24, "artifacts")
    assert artfs.DEFAULT_SANDBOX_PREFIX == "sandbox"


def test_type_checkers_know_the_same_names() -> None:
    stub = ast.parse((ROOT / "artfs" / "__init__.pyi").read_text())
    homes = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    promised = next(
        ast.literal_eval(node.value)
        for node in stub.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    module = artfs.__dict__
    assert homes == module["_HOME"]
    assert sorted(promised) == sorted(artfs.__all__) == sorted([*homes, "__version__"])
    assert set(artfs.__all__) <= set(dir(artfs))


@pytest.mark.parametrize(("module", "name"), [("artfs.types", "NamespaceInfo"), ("artfs.sessions", "SessionManager")])
def test_names_that_are_loaded_later_are_told(module: str, name: str) -> None:
    assert name in dir(import_module(module))


def test_type_checkers_know_the_path_api() -> None:
    stub = ast.parse((ROOT / "artfs" / "vfs" / "__init__.pyi").read_text())
    known = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    vfs = import_module("artfs.vfs")
    assert known == {*vfs.__all__, *vfs.ABOVE}
    assert all(hasattr(vfs, name) for name in known)


@pytest.mark.parametrize("module", ["artfs", "artfs.types", "artfs.sessions", "artfs.store"])
def test_there_is_nothing_else(module: str) -> None:
    assert not exists(module, "nosuch")


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import artfs", "pydantic anyio artfs.types"),
        ("import artfs.grid, artfs.types, artfs.errors, artfs.sessions", "pydantic redis anyio asyncio"),
        ("from artfs import NamespaceInfo, ArtifactMetadata, AccessDeniedError, create_store", "anyio redis apsw trio"),
        ("from artfs.sessions import SessionManager; SessionManager('web')", "redis apsw trio asyncio"),
        ("from artfs.sessions.providers.redis import _RedisSession; _RedisSession()", "redis trio"),
    ],
)
def test_what_is_loaded(program: str, absent: str) -> None:
    check = f"import sys\n{program}\nprint([name for name in {absent.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
