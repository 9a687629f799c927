"""What a DVC remote's client raised, as one sentence: what failed, where, and how to mend it."""

import re

NO_BUCKET = "its bucket does not exist: create it, or mend the address"
NO_CREDENTIALS = (
    "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give DVC's config "
    "`access_key_id` and `secret_access_key`"
)
REFUSED = (
    "the credentials are refused ({reason}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary ones, "
    "AWS_SESSION_TOKEN"
)
FORBIDDEN = "permission is denied ({reason}): let this account read, list and write there"
UNREACHABLE = "it cannot be reached ({reason}): check the address, AWS_ENDPOINT_URL where it is S3, and the network"
UNKNOWN_HOST = (
    "the host's key is not the one in ~/.ssh/known_hosts ({reason}): compare its fingerprint with the administrator's, "
    "then add it by `ssh-keyscan`"
)
NO_LOGIN = "the host lets us not in ({reason}): check the user, and the key in DVC's `keyfile`, ~/.ssh or the agent"
BAD_KEY = "the SSH key cannot be used ({reason}): give a key that needs no passphrase, or load it into the agent"
NO_FILE = "{reason}: check the address and, for SSH, DVC's `keyfile`"
BAD_VALUE = "{reason}: mend AWS_ENDPOINT_URL, or what DVC's config says of the remote"

SENTENCES = {
    "NoSuchBucket": NO_BUCKET,
    "InvalidBucketName": NO_BUCKET,
    "NoCredentialsError": NO_CREDENTIALS,
    "PartialCredentialsError": NO_CREDENTIALS,
    "ProfileNotFound": NO_CREDENTIALS,
    "InvalidAccessKeyId": REFUSED,
    "SignatureDoesNotMatch": REFUSED,
    "ExpiredToken": REFUSED,
    "InvalidToken": REFUSED,
    "AccessDenied": FORBIDDEN,
    "HostKeyNotVerifiable": UNKNOWN_HOST,
    "PermissionDenied": NO_LOGIN,
    "KeyImportError": BAD_KEY,
    "KeyEncryptionError": BAD_KEY,
    "PermissionError": FORBIDDEN,
    "SFTPPermissionDenied": FORBIDDEN,
    "EndpointConnectionError": UNREACHABLE,
    "HTTPClientError": UNREACHABLE,
    "SSLError": UNREACHABLE,
    "DisconnectError": UNREACHABLE,
    "ConnectionError": UNREACHABLE,
    "TimeoutError": UNREACHABLE,
    "gaierror": UNREACHABLE,
    "FileNotFoundError": NO_FILE,
    "ValueError": BAD_VALUE,
}
"""By S3's code of an answer, or by the name of an exception's class; so nothing loads a client to read its errors."""


def sentence(error: BaseException, address: str, what: str) -> str:
    """`what` ("read", "push to") failed on the remote at `address`: why, and how to mend it.

    An exception that another one caused speaks first, as it is nearer to the remote; a class before its bases.
    """
    told = next((SENTENCES[name] for name in _names(error) if name in SENTENCES), "{reason}")
    return f"cannot {what} DVC remote {address}: {told.format(reason=one_line(error))}"


def is_no_bucket(error: BaseException) -> bool:
    """Whether S3 answered that there is no such bucket; s3fs has the same exception for that and for a missing file."""
    return "NoSuchBucket" in _names(error)


def one_line(error: BaseException) -> str:
    """The exception's words in one line, endpoints without a request's path."""
    text = re.sub(r"(https?://[^/\s\"]+)[^\s\"]*", r"\1", str(error))
    wordless = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return " ".join(text.split()).rstrip(".") or wordless


def _names(error: BaseException) -> list[str]:
    """S3's code and the classes of the exception that began it all, then those of what that one led to."""
    answer = getattr(error, "response", None) or {}
    after = [str(answer.get("Error", {}).get("Code", "")), *(kind.__name__ for kind in type(error).__mro__)]
    return [*(_names(error.__cause__) if error.__cause__ else ()), *after]
