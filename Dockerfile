# One target per image: runtime, operator, postgres.
#   docker build --target runtime -t abide/runtime:0.1.0 .
# Layers go from what changes rarely to what changes often: an edit of the Python source rebuilds only the small wheel
# layers at the end. Dependencies come from the lock files with their hashes (tools/lock.sh rewrites them).

ARG BASE=debian:trixie-slim

# ---- what both Python images run on -----------------------------------------------------------------------------------
FROM ${BASE} AS python
# Recommended packages and documentation are of no use in an image.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates python3 tini tzdata \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 65532 abide \
 && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin abide
# Python as process 1 would not be ended by a signal that comes before it handles it, nor by SIGKILL from inside.
ENTRYPOINT ["/usr/bin/tini", "--"]
# The root file system is read-only where these images run, so bytecode is compiled while they are built.
ENV PATH=/opt/abide/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# ---- dependencies: pip lives in the build stages alone ----------------------------------------------------------------
FROM python AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY requirements-image-build.lock /build/
RUN python3 -m venv /build/venv \
 && /build/venv/bin/pip install --quiet --require-hashes -r /build/requirements-image-build.lock \
 && python3 -m venv --without-pip /opt/abide
COPY docker/install.sh requirements-image.lock /build/
RUN /build/install.sh --require-hashes -r /build/requirements-image.lock

# What the operator adds, laid out below /added: pip skips what is in /opt/abide already, so both images share that layer.
FROM build AS build-operator
COPY requirements-image-operator.lock /build/
RUN /build/install.sh --root /added --require-hashes -r /build/requirements-image-operator.lock

# ---- the source, as a wheel laid out below /wheel like the file system it is copied onto ------------------------------
FROM build AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY abide abide
COPY agent_api agent_api
COPY agent_store agent_store
COPY agent_runtime agent_runtime
COPY agent_cli agent_cli
COPY operator operator
RUN /build/venv/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /build/wheels . \
 && /build/install.sh --root /wheel --no-deps --no-index /build/wheels/*.whl

# ---- runtime: one agent ------------------------------------------------------------------------------------------------
FROM python AS runtime
COPY --from=build /opt/abide /opt/abide
COPY --from=wheel /wheel /
USER 65532:65532
EXPOSE 8080
# Process 1 only passes signals on and reaps: the kernel shields it from SIGKILL sent inside the container, and a runtime
# that cannot be killed there cannot be tried out by its operators either.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["python", "-m", "agent_runtime"]

# ---- operator: also carries the `abide` command, whose `migrate` it runs ------------------------------------------------
FROM python AS operator
COPY --from=build /opt/abide /opt/abide
COPY --from=build-operator /added /
COPY --from=wheel /wheel /
# One arena, given back early: 26 MiB less at 5,400 children.
ENV MALLOC_ARENA_MAX=1 \
    MALLOC_TRIM_THRESHOLD_=100000
USER 65532:65532
EXPOSE 8080
CMD ["python", "-m", "agent_operator"]

# ---- postgres: the embedded database -----------------------------------------------------------------------------------
FROM ${BASE} AS postgres
# The user exists before the packages, so that its id is ours; no cluster is made while the image is built. The compiler
# behind JIT is half the image and of no use to short statements: without llvmjit.so Postgres does not try it.
RUN groupadd --gid 70001 postgres \
 && useradd --uid 70001 --gid 70001 --home-dir /var/lib/postgresql --shell /bin/sh postgres \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql-common \
 && sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql-17 postgresql-17-pgvector \
 && dpkg --purge --force-depends libllvm19 libz3-4 \
 && rm -rf /usr/lib/postgresql/17/lib/llvmjit* /usr/lib/postgresql/17/lib/bitcode \
    /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log /var/log/postgresql \
 && mkdir -p /var/lib/postgresql/data /var/run/postgresql \
 && chown 70001:70001 /var/lib/postgresql /var/lib/postgresql/data /var/run/postgresql
ENV PATH=/usr/lib/postgresql/17/bin:$PATH \
    LANG=C.UTF-8
COPY docker/postgres/ /usr/share/abide/postgres/
USER 70001:70001
EXPOSE 5432
ENTRYPOINT ["/usr/share/abide/postgres/entrypoint.sh"]
