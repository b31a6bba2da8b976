# The cache service: gRPC, prometheus and a Redis client, neither torch nor ray. Build from the repository's root:
#   docker build -f deploy/docker/cache.Dockerfile -t palimpsest-cache:0.1.0 .
ARG PYTHON=python:3.12-slim-trixie

FROM ${PYTHON} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /build
# The packages are not here yet: this layer is rebuilt when the pins change, not when the code does.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN /opt/venv/bin/pip install --constraint constraints.txt '.[redis]'

FROM ${PYTHON}
RUN useradd --uid 1000 --user-group --no-create-home palimpsest
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /opt/palimpsest
COPY protos protos
COPY cache_service cache_service
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/palimpsest PYTHONUNBUFFERED=1
RUN python -m compileall -q .
USER 1000:1000
EXPOSE 7070 9090
ENTRYPOINT ["python", "-m", "cache_service"]
CMD ["--host", "0.0.0.0", "--port", "7070", "--metrics-port", "9090"]
