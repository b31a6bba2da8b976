# Ray head and workers, and the bundled models. Build from the repository's root:
#   docker build -f deploy/docker/serve.Dockerfile -t palimpsest-serve:0.1.0 .
# PyPI's torch brings CUDA. For machines without a GPU, an image of a third of the size:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu --build-arg EXTRA=serve ...
ARG PYTHON=python:3.12-slim-trixie

FROM ${PYTHON} AS dependencies
ARG PIP_EXTRA_INDEX_URL
ARG EXTRA=rdt
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /build
# The packages are not here yet: this layer is rebuilt when the pins change, not when the code does.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN /opt/venv/bin/pip install --constraint constraints.txt ".[${EXTRA}]"

FROM ${PYTHON}
# KubeRay's probes call wget. Debian drops old versions from its mirrors, so a pin would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes wget \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --user-group --no-create-home palimpsest
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /opt/palimpsest
COPY protos protos
COPY cache_service cache_service
COPY workers workers
COPY cluster cluster
COPY deploy/palimpsest.yaml deploy/palimpsest.yaml
# The root file system is read-only in the cluster: everything written, compiled kernels included, goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/palimpsest PYTHONUNBUFFERED=1 HOME=/tmp RAY_USAGE_STATS_ENABLED=0
# `palimpsest serve` sets the same on one machine: they take some of Ray from the way between client and worker, and
# guard Serve's proxy.
ENV RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0 RAY_SERVE_PROXY_USE_GRPC=1
ENV RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cluster.ingress.http.proxy:middlewares
# It sets these, too: plain log lines, no statistics every minute, and files that are rotated.
ENV RAY_COLOR_PREFIX=0 RAY_DEDUP_LOGS=0 RAY_DISABLE_WORKER_LOG_PREFIX=1
ENV RAY_event_stats=0 RAY_ROTATION_MAX_BYTES=8388608 RAY_ROTATION_BACKUP_COUNT=2
RUN python -m compileall -q .
USER 1000:1000
EXPOSE 8000 9000
# KubeRay replaces this command; without KubeRay it starts the whole system on one machine.
CMD ["palimpsest", "serve", "--config", "deploy/palimpsest.yaml"]
