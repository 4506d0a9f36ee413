# One image for every role: `migrate`, `ingress`, `worker` and `flower` are commands of the same program.
#
#   docker build --tag leadwire:local .
#
# Nothing of the first stage but the finished environment reaches the second: no compiler, no pip, no lock, no source tree.
# The root file system may be read-only: what a role writes goes to LEADWIRE_HOME and to /tmp.
ARG PYTHON_IMAGE=python:3.13.14-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Everything from outside, by its hash, as wheels only: nothing that is fetched runs while the image is built. The layer lasts
# until the lock changes.
COPY worker/requirements.lock worker/requirements.lock
RUN python -m pip download --require-hashes --no-deps --only-binary=:all: --dest=/wheels --requirement=worker/requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY rules rules
COPY worker worker
COPY ingress ingress
COPY console console
# The lock also holds what tests need; of those wheels only what Leadwire itself asks for is installed.
# hadolint ignore=DL3013
RUN python -m pip wheel --no-deps --no-index --find-links=/wheels --wheel-dir=/wheels . \
    && python -m venv --without-pip /opt/leadwire \
    && python -m pip --python=/opt/leadwire/bin/python install --no-index --find-links=/wheels "leadwire[postgres]"

FROM ${PYTHON_IMAGE}
ARG LEADWIRE_VERSION=0.1.0
ARG LEADWIRE_REVISION=unknown
LABEL org.opencontainers.image.title="Leadwire" \
      org.opencontainers.image.description="Signed webhooks become AI calls, WhatsApp templates and team tasks." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${LEADWIRE_VERSION}" \
      org.opencontainers.image.revision="${LEADWIRE_REVISION}"
# The number is fixed, so that a volume keeps its owner and Kubernetes can see that it is not root.
RUN python -m pip uninstall --yes --root-user-action=ignore pip \
    && groupadd --gid=10001 leadwire \
    && useradd --uid=10001 --gid=10001 --no-log-init --no-create-home --home-dir=/var/lib/leadwire --shell=/usr/sbin/nologin leadwire \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/leadwire \
    && install --directory --mode=0755 /etc/leadwire/rules
COPY --from=build /opt/leadwire /opt/leadwire
ENV PATH="/opt/leadwire/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LEADWIRE_HOME=/var/lib/leadwire \
    LEADWIRE_HOST=0.0.0.0 \
    LEADWIRE_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/leadwire
EXPOSE 8080
# No HEALTHCHECK: each role has its own; see docker-compose.yml and deploy/kubernetes.
ENTRYPOINT ["leadwire"]
CMD ["--help"]
