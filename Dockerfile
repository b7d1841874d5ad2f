# One image, two programs: vnetpods-operator (default) and vnetpods-agent, with the CNI plugin that the agent installs.
#
#   docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/vnetpods:TAG .
#
# For a release name BASE by its digest, so that what was tested is what is built again: docs/install.md has the command.
# BASE must be Debian 13 (glibc, Python 3.13): its packages are the same in all stages, so what was built in one runs in another.
ARG BASE=debian:trixie-slim
# Set by the builder; a default here would override it.
ARG BUILDPLATFORM

# The plugin, cross-built on the builder's own architecture; the compiler is a Python package.
FROM --platform=${BUILDPLATFORM} ${BASE} AS shim
ARG TARGETARCH
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv ca-certificates >/dev/null
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY requirements.lock pyproject.toml ./
COPY image image
RUN python3 -m venv /venv \
 && /venv/bin/python image/subset.py ziglang <requirements.lock >shim.lock \
 && /venv/bin/pip install --quiet --no-deps --require-hashes -r shim.lock
COPY agent/shim agent/shim
RUN /venv/bin/python agent/shim/build.py --arch "${TARGETARCH:-$(dpkg --print-architecture)}" /shim

# The Python environment: what the two programs need of the lock file, checked by hash, and our wheel; byte-compiled.
FROM ${BASE} AS environment
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv ca-certificates >/dev/null
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY requirements.lock pyproject.toml ./
COPY image image
RUN python3 -m venv /build \
 && /build/bin/pip install --quiet --no-deps --require-hashes -r requirements.lock \
 && /build/bin/python image/subset.py --extra operator --extra agent <requirements.lock >runtime.lock \
 && python3 -m venv --without-pip /opt/vnetpods \
 && /build/bin/pip --python /opt/vnetpods/bin/python install --quiet --no-deps --require-hashes -r runtime.lock
COPY README.md LICENSE ./
COPY crds crds
COPY kit kit
COPY operator operator
COPY agent/vnetpods_agent agent/vnetpods_agent
RUN /build/bin/hatchling build --target wheel --directory /wheel >/dev/null \
 && /build/bin/pip --python /opt/vnetpods/bin/python install --quiet --no-deps --no-index /wheel/*.whl \
 && sh image/trim.sh /opt/vnetpods \
 && /opt/vnetpods/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/vnetpods/lib

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vnetpods" \
      org.opencontainers.image.description="Gives every pod of a self-managed Kubernetes cluster on Azure VMs a real VNet address." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# nft for the agent's table; iptables (both variants) for hosts whose FORWARD chain drops; certificates for Azure
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-minimal libpython3-stdlib nftables iptables ca-certificates >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/dpkg.log /var/log/apt /usr/share/doc /usr/share/man /usr/share/locale
COPY --from=environment /opt/vnetpods /opt/vnetpods
COPY --from=shim /shim /usr/libexec/vnetpods/shim
ENV PATH=/opt/vnetpods/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["vnetpods-operator"]
