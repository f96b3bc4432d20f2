# Stand-in for rust:1.95-slim-bookworm where no image can be pulled: see engine.sh, which lays out the context.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true
COPY toolchain /usr/local
COPY cargo /usr/local/cargo
