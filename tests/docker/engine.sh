# A Docker engine and the base images of the Dockerfiles. Sourced by tests/docker.sh.
#
# Where an engine answers, it is used, and it pulls the base images as for everybody else. Where none does, one is
# started: its images under target/docker, where later runs find them (rm -r it at will), the rest in a temporary folder. That is a
# bare test machine, so nothing is pulled either: stand-ins for the base images are made with debootstrap and the
# Rust toolchain that runs here. A stand-in has a digest of its own, so the Dockerfiles are told its name.

engine_home=$PWD/target/docker
engine_run=     # temporary folder of the engine that we started
engine_pid=
build_options=() # for every docker build
rust_image=()    # for the builds from the stand-ins
debian_image=()

start_engine() {
    need docker=docker.io
    if docker info >/dev/null 2>&1; then
        echo "using the Docker engine that answers"
        return
    fi
    [ "$(id -u)" = 0 ] || die "no Docker engine answers, and only root can start one: start it, or run this as root"
    need dockerd=docker.io iptables=iptables debootstrap=debootstrap
    mkdir -p "$engine_home"
    # Inherited by the engine: one that a killed run left behind keeps the lock too.
    exec 9>"$engine_home/lock"
    flock -n 9 || die "another run, or an engine that it left behind, uses $engine_home"
    engine_run=$(mktemp -d)
    # No default bridge: it has one name for the whole machine. The tests make networks of their own, and builds
    # use the host's.
    PATH="$PATH:/usr/sbin:/sbin" dockerd --bridge none \
        --data-root "$engine_home/data" --exec-root "$engine_run/exec" \
        --pidfile "$engine_run/pid" --host "unix://$engine_run/socket" >"$engine_run/log" 2>&1 &
    engine_pid=$!
    export DOCKER_HOST=unix://$engine_run/socket
    build_options=(--network host)
    rust_image=(--build-arg RUST_IMAGE=rust:1.95-slim-bookworm)
    debian_image=(--build-arg DEBIAN_IMAGE=debian:bookworm-slim)
    wait_for 60 "the Docker engine" docker info || {
        tail -n 20 "$engine_run/log" >&2
        die "dockerd does not start here"
    }
    # What a killed run left behind. The engine is ours alone.
    docker ps -aq | xargs -r docker rm -fv >/dev/null
    docker network prune -f >/dev/null
    docker volume prune -f >/dev/null
    make_debian
    make_rust
}

stop_engine() {
    [ -n "$engine_pid" ] || return 0
    kill "$engine_pid"
    wait "$engine_pid" || true
    # The namespace of --network host stays mounted.
    umount "$engine_run"/exec/netns/* 2>/dev/null || true
    rm -rf "$engine_run"
}

has_image() {
    docker image inspect "$1" >/dev/null 2>&1
}

# debian:bookworm-slim, with this machine's package sources.
make_debian() {
    has_image debian:bookworm-slim && return
    echo "making debian:bookworm-slim with debootstrap"
    local root=$engine_run/root
    debootstrap --variant=minbase bookworm "$root" >"$engine_run/debootstrap.log" 2>&1 || {
        tail -n 20 "$engine_run/debootstrap.log" >&2
        die "debootstrap failed"
    }
    if [ -e /etc/apt/sources.list.d/debian.sources ]; then
        cp /etc/apt/sources.list.d/debian.sources "$root/etc/apt/sources.list.d/"
        rm -f "$root/etc/apt/sources.list"
    fi
    apt-config dump | grep -E '^Acquire::https?::' >"$root/etc/apt/apt.conf.d/90host" || true
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    tar -C "$root" -c . | docker import - debian:bookworm-slim >/dev/null
    rm -rf "$root"
}

# rust:1.95-slim-bookworm. It also carries the crates of Cargo.lock, fetched by the cargo of this machine in its own
# way, and builds offline.
make_rust() {
    local stage=$engine_home/rust sysroot
    sysroot=$(rustc --print sysroot)
    [[ $(rustc --version) == "rustc 1.95."* ]] || die "the Dockerfile builds with Rust 1.95, here is $(rustc --version)"
    if [ ! -e "$stage/complete" ]; then
        rm -rf "$stage"
        mkdir -p "$stage/toolchain/bin" "$stage/cargo"
        cp -a "$sysroot"/bin/{cargo,rustc} "$stage/toolchain/bin/"
        cp -a "$sysroot/lib" "$stage/toolchain/"
        rm -rf "$stage/toolchain/lib/rustlib/src"
        # Where crates come from is a setting of the machine.
        local config
        for config in config config.toml; do
            cp "${CARGO_HOME:-$HOME/.cargo}/$config" "$stage/cargo/" 2>/dev/null || true
        done
        touch "$stage/complete"
    fi
    CARGO_HOME=$stage/cargo cargo fetch --quiet --locked
    # What cargo unpacks again, and what changes at every look: the layer must stay the same while Cargo.lock does.
    rm -rf "$stage"/cargo/registry/src "$stage"/cargo/.global-cache "$stage"/cargo/.package-cache*
    docker build --quiet "${build_options[@]}" -t rust:1.95-slim-bookworm -f tests/docker/rust.Dockerfile "$stage" >/dev/null
}
