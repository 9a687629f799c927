# Redis from Debian, for a cluster that reaches no registry: see README.md.
ARG BASE=docker.io/library/debian:12-slim
FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/*
USER 10001
CMD ["redis-server"]
