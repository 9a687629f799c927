"""The address of a Redis online store."""

from urllib.parse import urlsplit

from narrowcast.errors import NarrowcastError

PASSWORD = "NARROWCAST_REDIS_PASSWORD"
"""The variable that its password is read from, wherever the store is opened."""


def check_url(url: str) -> None:
    """Raise NarrowcastError unless the URL is redis://[user@]host[:port][/db], or rediss:// for TLS."""
    try:
        parts = urlsplit(url)
        port, database = parts.port, parts.path.strip("/")
    except ValueError:
        raise _bad(url, "its port is no number") from None
    if parts.password is not None:
        shown = url.replace(f":{parts.password}@", "@")
        raise _bad(shown, f"a password must not be written down: take it out and set {PASSWORD} in the environment")
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise _bad(url, "it is no Redis address")
    if database and not database.isdecimal():
        raise _bad(url, f"the database '{database}' is no number")


def _bad(url: str, why: str) -> NarrowcastError:
    return NarrowcastError(
        f"online_store is '{url}', but {why}; it must be redis://host:port/db, or empty for SQLite in the folder"
    )
