# imaps-proxy in one static binary on an empty base: no shell, no libc, no package to patch. Beside it only its
# configuration and the CA roots by which ACME directories are trusted.
#
#   docker build -t imaps-proxy .
#   docker run -e BACKEND=legacy:143 -v ./certs:/certs -p 993:993 imaps-proxy
#
# Builds with BuildKit and with the classic builder, for x86_64 and aarch64. gcc and libc6-dev of the rust
# image are all that aws-lc-sys needs on these two.

# By digest (of the index, for both machines), so that nobody can put another image under the tag. To build from
# another one, or from a mirror: --build-arg RUST_IMAGE=…; `docker buildx imagetools inspect` says a tag's digest.
ARG RUST_IMAGE=rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082
FROM ${RUST_IMAGE} AS build
WORKDIR /build

# Static, for the final image holds no libc. Names are resolved by hickory, so nothing of glibc's NSS is
# missed. Only with an explicit --target do these flags stay away from procedural macros, which must be
# shared objects.
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies on their own layer, built from the manifests and empty crates: a change in a source file does
# not compile them again.
COPY Cargo.toml Cargo.lock build.rs ./
COPY crates/legacy-imap/Cargo.toml crates/legacy-imap/
COPY .cargo .cargo
RUN mkdir -p src benches/peers crates/legacy-imap/src \
    && touch src/lib.rs benches/components.rs benches/peers/main.rs crates/legacy-imap/src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin imaps-proxy --target "$(rustc --print host-tuple)" \
    && rm -r src benches crates

# .dockerignore lets through only what the build reads. The empty crate is newer than the sources, which keep
# their own times, so cargo has to be told that they changed.
COPY . .
RUN touch src/main.rs src/lib.rs crates/*/src/lib.rs \
    && cargo build --release --locked --bin imaps-proxy --target "$(rustc --print host-tuple)" \
    && install -D "target/$(rustc --print host-tuple)/release/imaps-proxy" /image/imaps-proxy \
    && install -D -m 0644 config/container.yaml /image/etc/imaps-proxy/config.yaml \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && mkdir /volume

FROM scratch
LABEL org.opencontainers.image.title="imaps-proxy" \
      org.opencontainers.image.description="TLS-terminating IMAP proxy: IMAPS in front of a plaintext IMAP server" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

COPY --from=build /image /

# /certs: fullchain.pem and privkey.pem of the operator, only ever read.
# /var/lib/imaps-proxy: what the proxy makes by itself, that is the self-signed certificate while /certs is
# empty. Apart, because a bind-mounted /certs often belongs to root and must stay read-only. Owned by the
# user below, so that fresh volumes are writable.
COPY --from=build --chown=65532:65532 /volume /certs
COPY --from=build --chown=65532:65532 /volume /var/lib/imaps-proxy
VOLUME /certs /var/lib/imaps-proxy

# Port 993 without root. In a network namespace of its own a container needs no capability for that: Docker
# (20.10 and later) and Podman let everybody bind low ports there (net.ipv4.ip_unprivileged_port_start=0);
# Kubernetes takes the same as a safe sysctl. So --cap-drop ALL and no-new-privileges both work.
# A file capability on the binary would not add to that: the classic builder loses it in COPY, no-new-privileges
# ignores it, and without NET_BIND_SERVICE in the bounding set the kernel refuses to start such a binary at all.
# With --network host, one of: sysctl net.ipv4.ip_unprivileged_port_start=993 on the host; LISTEN=[::]:9993
# and a redirect; or --user 0:0 --cap-drop ALL --cap-add NET_BIND_SERVICE and a certificate in
# /certs: root by name only, which may not write to the volumes.
USER 65532:65532

EXPOSE 993 9143
STOPSIGNAL SIGTERM
# Asks /readyz of its own metrics listener: unhealthy while the backend is down, and while draining.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/imaps-proxy", "health"]
ENTRYPOINT ["/imaps-proxy"]
CMD ["run"]
