"""DVC's S3 and SSH as narrowcast uses them: errors come in seconds, an SSH host is known before it is trusted.

Importing this module has DVC take these classes for `s3://` and `ssh://`, in a push as in a checkout.
"""

import os
import sys
from typing import Any

from dvc_objects.fs import known_implementations
from dvc_s3 import S3FileSystem
from dvc_ssh import SSHFileSystem

CONNECT_SECONDS = 10
ATTEMPTS = 3


class S3(S3FileSystem):
    """DVC's S3, which takes its region from AWS_REGION too and gives up after three attempts."""

    def _prepare_credentials(self, **config: Any) -> dict[str, Any]:
        config.setdefault("region", os.environ.get("AWS_REGION"))
        config.setdefault("connect_timeout", CONNECT_SECONDS // 2)
        login: dict[str, Any] = super()._prepare_credentials(**config)
        login["config_kwargs"] = {**login.get("config_kwargs", {}), "retries": {"total_max_attempts": ATTEMPTS}}
        return login


class SSH(SSHFileSystem):
    """DVC's SSH, which checks the host's key as ssh does and asks for passwords only where somebody can answer."""

    def _prepare_credentials(self, **config: Any) -> dict[str, Any]:
        from asyncssh import SSHClient

        if not (sys.stdin and sys.stdin.isatty()):
            config.setdefault("client_factory", SSHClient)
        login: dict[str, Any] = super()._prepare_credentials(**config)
        # an empty tuple stands for the usual files; DVC's own class leaves the check out
        return {**login, "known_hosts": (), "connect_timeout": CONNECT_SECONDS, "keepalive_interval": CONNECT_SECONDS}


for scheme, kind in (("s3", S3), ("ssh", SSH)):
    known_implementations[scheme] = {**known_implementations[scheme], "class": f"{__name__}.{kind.__name__}"}
