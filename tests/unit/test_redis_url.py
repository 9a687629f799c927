import pytest

from narrowcast.components.features.redis_url import check_url
from narrowcast.errors import NarrowcastError


@pytest.mark.parametrize(
    "url",
    ["redis://localhost", "redis://10.0.0.7:6379/3", "rediss://reader@store.example:6380/0", "redis://[::1]:6379/"],
)
def test_addresses_of_a_redis(url):
    check_url(url)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("localhost:6379", "no Redis address"),
        ("http://localhost:6379/0", "no Redis address"),
        ("redis:///0", "no Redis address"),
        ("redis://localhost:0/0", "no Redis address"),
        ("redis://localhost:6379/0?password=secret", "no Redis address"),
        ("redis://localhost:port/0", "its port is no number"),
        ("redis://localhost:70000/0", "its port is no number"),
        ("redis://localhost:6379/zero", "the database 'zero' is no number"),
    ],
)
def test_what_is_none_is_a_sentence(url, sentence):
    with pytest.raises(NarrowcastError, match=sentence):
        check_url(url)


@pytest.mark.parametrize("url", ["redis://:secret@localhost", "redis://reader:secret@localhost:6379/0"])
def test_a_password_is_refused_and_not_repeated(url):
    with pytest.raises(NarrowcastError, match="NARROWCAST_REDIS_PASSWORD") as told:
        check_url(url)
    assert "secret" not in str(told.value)
