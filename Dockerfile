# The image of every step, of Ray's pods and of the predictor: `make image`; k8s/README.md has its arguments.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# Wheels to take before an index is asked: none, or those of a folder by `--build-context wheels=FOLDER`.
FROM scratch AS wheels

# The dependencies by themselves, so that another change of pyproject.toml does not install them anew.
FROM ${BASE} AS dependencies
COPY pyproject.toml /
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > /dependencies.txt

FROM ${BASE} AS packages
ENV PATH=/opt/narrowcast/bin:$PATH VIRTUAL_ENV=/opt/narrowcast
ARG TORCH_BACKEND=cpu
COPY --from=dependencies /dependencies.txt /opt/narrowcast/
COPY requirements.lock /opt/narrowcast/
# The lock pins whatever is installed; only torch's CUDA builds bring packages that it does not name.
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/uv \
    mkdir /tmp/uv && export TMPDIR=/tmp/uv UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 PATH=$PATH:/tmp/uv/bin \
    && python3 -m venv /tmp/uv \
    && /tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check uv==0.13.8 \
    && cd /opt/narrowcast \
    && uv venv --quiet --allow-existing --no-python-downloads --python 3.11 . \
    && uv pip install --quiet --compile-bytecode --find-links /wheels ${TORCH_BACKEND:+--torch-backend=$TORCH_BACKEND} \
        --constraint requirements.lock --requirement dependencies.txt \
    && uv pip check --quiet \
    && ! (uv pip freeze --quiet | sed 's/+.*//' | grep -vxFf requirements.lock | grep -vE '^(cuda|nvidia|triton)') \
    && rm -r /tmp/uv

FROM packages AS wheel
COPY . /src
RUN python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist /src

FROM packages
COPY --from=wheel /dist /opt/narrowcast/dist
RUN python -m pip install --quiet --no-index --no-deps /opt/narrowcast/dist/*.whl \
    && useradd --uid 1000 --home-dir /tmp --no-create-home narrowcast
# Steps and servers write below /tmp alone, so the root file system may be read-only.
ENV HOME=/tmp DVC_SITE_CACHE_DIR=/tmp/dvc PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=1 FEAST_USAGE=False GX_ANALYTICS_ENABLED=False RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /tmp
CMD ["narrowcast", "--help"]
ARG COMMIT=unknown
LABEL org.opencontainers.image.title=narrowcast org.opencontainers.image.revision=${COMMIT}
