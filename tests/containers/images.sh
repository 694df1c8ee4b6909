#!/bin/sh
# Makes the images that compose.yaml and the Dockerfile are based on, where no registry can be reached: as root, on Debian, with
# podman, runc, debootstrap and this repository's .venv. Usage: tests/containers/images.sh SCRATCH
# They stand in for the real ones under the same names and leave this machine's own out of it: keep them out of use elsewhere.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
scratch=$1
python=$repository/.venv/bin/python
kafka=docker.io/apache/kafka:$("$python" -c 'from broker.kafka.embedded.jars import KAFKA_VERSION; print(KAFKA_VERSION)')
mkdir -p "$scratch"

# docker.io/library/python:3.13-slim: Debian 13 has that version. pip finds what the locks name in /wheels, offline.
if ! podman image exists docker.io/library/python:3.13-slim; then
    test -d "$scratch/python" || debootstrap --variant=minbase --include=python3-dev,python3-venv,python3-pip,ca-certificates trixie "$scratch/python"
    chroot "$scratch/python" python3 -m venv /usr/local  # apart from Debian's own packages, as in the real image
    printf '[global]\nno-index = true\nfind-links = /wheels\n' > "$scratch/python/etc/pip.conf"
    tar -C "$scratch/python" -c . | podman import - docker.io/library/python:3.13-slim
fi

# docker.io/apache/kafka, in the version that Everput embeds
if ! podman image exists "$kafka"; then
    mkdir -p "$scratch/kafka/jars"
    cp "$here/run" "$here/kafka-broker-api-versions.sh" "$scratch/kafka/"
    cp -r "$("$python" -c 'from broker.kafka.embedded.java import java_home; print(java_home())')" "$scratch/kafka/java"
    "$python" -c 'from broker.kafka.embedded.jars import kafka_jars; print(*kafka_jars(), sep="\n")' |
        while read -r jar; do cp "$jar" "$scratch/kafka/jars/"; done
    podman build --isolation chroot --tag "$kafka" --file "$here/kafka.Containerfile" "$scratch/kafka"
fi

# The wheels of the locks, and Everput's own image of the repository's Dockerfile.
"$python" -m pip download --quiet --require-hashes --no-deps --python-version 3.13 --only-binary=:all: \
    $(for one in 5 12 17 24 26 27 28 31 34; do echo "--platform manylinux_2_${one}_$(uname -m)"; done) \
    --platform "manylinux2014_$(uname -m)" --requirement "$repository/requirements.lock" \
    --requirement "$repository/requirements-wheels.lock" --dest "$scratch/wheels"
podman build --isolation chroot --volume "$scratch/wheels:/wheels:ro" --build-arg PYTHON_IMAGE=docker.io/library/python:3.13-slim \
    --tag localhost/everput "$repository"
