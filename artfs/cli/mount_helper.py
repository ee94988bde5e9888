"""Options of a mount, as mount(8) and fstab write them, and the call `artfs SOURCE TARGET -o …` that mount(8) makes.

    artfs#/srv/store  /mnt/grid  fuse        defaults,allow_other,_netdev  0 0
    /srv/store        /mnt/grid  fuse.artfs  path=default/shared/web,ro    0 0

mount.fuse(8) takes either and runs `artfs /srv/store /mnt/grid -o rw,…`.  All here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from artfs.errors import InvalidError

PASSED = frozenset(
    {
        *("ro", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async"),
        *("dirsync", "noatime", "nodiratime", "norelatime", "nostrictatime"),
    }
)
"""What libfuse hands to the kernel."""
NOT_OURS = frozenset(
    {
        *("defaults", "rw", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner"),
        *("group", "nogroup", "nofail", "_netdev", "atime", "diratime", "relatime", "strictatime", "loud"),
        *("silent", "iversion", "noiversion", "lazytime", "nolazytime", "nomand", "default_permissions"),
    }
)
"""What is mount(8)'s own, or the default; `default_permissions` is always on."""
NOT_OURS_VALUES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
AS_MOUNTED = ("user_id=", "group_id=", "max_read=", "blksize=")
"""What the kernel's table says of a mount, which mount(8) repeats to remount it."""
OWN = "path, as, sandbox, checked, allow_other"


@dataclass(slots=True)
class MountOptions:
    """`passed`: for the kernel.  `remount`: of a mount that is there; `all_named`: by mount(8), which names all."""

    passed: list[str] = field(default_factory=list)
    remount: bool = False
    all_named: bool = False
    allow_other: bool = False
    checked: bool = False
    path: str | None = None
    who: str | None = None
    sandbox: str | None = None


def mount_options(lists: Iterable[str]) -> MountOptions:
    """The options in comma-separated lists; later ones win.  Errors: InvalidError for an unknown one."""
    found = MountOptions()
    options = [option.strip() for text in lists for option in text.split(",")]
    found.remount = "remount" in options
    for option in options:
        name, equals, value = option.partition("=")
        if option in PASSED:
            found.passed.append(option)
        elif not option or option in NOT_OURS or option.startswith(NOT_OURS_VALUES):
            if option == "rw":
                found.passed = [other for other in found.passed if other != "ro"]
        elif option == "remount":
            pass
        elif found.remount and option.startswith(AS_MOUNTED):
            found.all_named = True
        elif option == "allow_other":
            found.allow_other = True
        elif option == "checked":
            found.checked = True
        elif equals and name == "path":
            found.path = value
        elif equals and name == "as":
            found.who = value
        elif equals and name == "sandbox":
            found.sandbox = value
        else:
            raise InvalidError(
                f"there is no mount option {option!r}; artfs has {OWN}, and takes {' '.join(sorted(PASSED))}"
            )
    return found


def as_mount_command(words: Sequence[str]) -> list[str] | None:
    """`artfs mount …` for a call by mount(8), `SOURCE TARGET [-o OPTIONS]…`; None for any other.

    A source is a path, and no command has a slash in its name.
    """
    if len(words) < 2 or "/" not in words[0] or words[0].startswith("-") or words[1].startswith("-"):
        return None
    source = words[0].removeprefix("artfs#")
    return ["--root", source, "--quiet", "mount", "--no-init", words[1], *words[2:]]
