"""`latest:<name>`: the version last taken of the folder of that name, by a pointer that a remote keeps beside the data.

The pointer is the file `narrowcast/latest/<name>`, out of the way of DVC's own objects in `files/md5`.
"""

import re

from narrowcast.components.data.remotes import Remote
from narrowcast.errors import NarrowcastError

PREFIX = "latest:"
FOLDER = "narrowcast/latest"
FOLDER_VERSION = re.compile(r"[0-9a-f]{32}\.dir")


def write(remote: Remote, name: str, version: str) -> None:
    """Have `latest:<name>` mean `version` from now on."""
    remote.write(f"{FOLDER}/{name}", f"{version}\n")


def resolve(version: str, remote: Remote) -> str:
    """The version that `latest:<name>` means on `remote`; a version itself is returned as it is.

    Raises NarrowcastError for what is neither, and for a name of which `remote` has no snapshot, with the names it has.
    """
    if FOLDER_VERSION.fullmatch(version):
        return version
    name = version.removeprefix(PREFIX)
    if not version.startswith(PREFIX) or name in {"", ".", ".."} or "/" in name:
        raise NarrowcastError(
            f"'{version}' is no data version: give the '<32 hexadecimal digits>.dir' that `narrowcast data snapshot` "
            f"prints, or '{PREFIX}<name of the folder>'"
        )
    try:
        found = remote.read(f"{FOLDER}/{name}").strip()
    except FileNotFoundError:
        names = ", ".join(remote.names(FOLDER)) or "none yet"
        raise NarrowcastError(
            f"DVC remote {remote.address} has no snapshot of a folder '{name}' (it has: {names}): take one with "
            "`narrowcast data snapshot`, or mend data_version"
        ) from None
    if not FOLDER_VERSION.fullmatch(found):
        raise NarrowcastError(
            f"{FOLDER}/{name} on DVC remote {remote.address} holds no data version: take a snapshot of {name} again"
        )
    return found
