# The service without development extras: no in-memory Redis, no compiler, no pip, no root.
# Build: docker build --tag authsvc .
# With a base that nobody can change: --build-arg PYTHON_IMAGE=python@sha256:...

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /build
COPY requirements/prod.txt requirements/dev.txt requirements/
# The locked setuptools that builds the project stands in dev.txt; nothing else of that file is installed.
RUN python -m venv --without-pip /opt/authsvc \
 && python -m pip --python /opt/authsvc/bin/python install --no-cache-dir --require-hashes \
      --requirement requirements/prod.txt \
 && sed -n '/^setuptools==/,/[^\\]$/p' requirements/dev.txt > requirements/build.txt \
 && python -m pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY authsvc authsvc
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
 && python -m pip --python /opt/authsvc/bin/python install --no-cache-dir --no-deps dist/*.whl

FROM ${PYTHON_IMAGE}

RUN groupadd --gid 10001 authsvc \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin authsvc \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/authsvc/keys
COPY --from=build /opt/authsvc /opt/authsvc
ENV PATH=/opt/authsvc/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/authsvc
# A number, so that `runAsNonRoot` can be checked.
USER 10001:10001

# 8080 is public; 9464 serves /metrics and belongs to the monitoring alone.
EXPOSE 8080 9464

# Nothing is written but metrics and heartbeat files, to /dev/shm or else to /tmp: the root file system may be
# read-only where one of the two is writable.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT', '8080')), timeout=2); c.request('GET', '/v1/health/live'); sys.exit(c.getresponse().status != 200)"]

# No shell in between: SIGTERM reaches the server, which then has up to 20 s to finish what it has begun.
STOPSIGNAL SIGTERM
CMD ["authsvc", "serve"]
