#!/bin/sh
# Starts Redis with the password's hash and 60 % of the container's memory for data: rewriting its log copies some.
set -eu
hash=$(sha256sum < /run/secrets/redis/password | cut -d ' ' -f 1)
echo "user default on #$hash ~* &* +@all -@admin -@dangerous +info +bgsave +lastsave" > /run/redis/users.acl
exec redis-server /etc/redis/redis.conf --maxmemory "$((MEMORY_BYTES / 100 * 60))"
