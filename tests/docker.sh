#!/usr/bin/env bash
# The container image, as an operator runs it: in front of a Dovecot container found by its name, read-only, without
# root and without capabilities. Starts a Docker engine if none answers (as root on Linux), see docker/engine.sh.
#
#   tests/docker.sh             all cases
#   tests/docker.sh NAME...     some of them, by the names of the functions below
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/packages.sh
. tests/docker/engine.sh

# Every container and network made here carries this in its name and is gone at the end. The images stay: their
# layers are what makes the next run quick.
prefix=imaps-proxy-test-$$
image=imaps-proxy-test/proxy
legacy_image=imaps-proxy-test/dovecot
client_image=imaps-proxy-test/client
network=$prefix-net
scratch=$(mktemp -d)

clean_up() {
    local ids
    ids=$(docker ps -aq --filter "name=$prefix" 2>/dev/null || true)
    [ -z "$ids" ] || docker rm -fv $ids >/dev/null || true
    docker network rm "$network" >/dev/null 2>&1 || true
    stop_engine
    rm -rf "$scratch"
}
trap clean_up EXIT

# --- Steps ----------------------------------------------------------------------------------------------------

# The containers of one case are "$prefix-$case-…", so that a case leaves nothing to the next.
start_legacy() {
    docker run -d --name "$prefix-$case-legacy" --network "$network" --network-alias "$case-legacy" "$legacy_image" >/dev/null
}

# start_proxy [DOCKER OPTION…]: hardened as in deploy/compose.yaml. The health check is the image's, only more often.
start_proxy() {
    docker run -d --name "$prefix-$case-proxy" --network "$network" --network-alias "$case-proxy" \
        -e BACKEND="$case-legacy:143" -p 127.0.0.1::993 \
        --read-only --cap-drop ALL --cap-add NET_BIND_SERVICE --security-opt no-new-privileges \
        --health-interval 1s --health-retries 1 --health-start-period 0s \
        "$@" "$image" >/dev/null
}

proxy_state() {
    docker inspect -f "$1" "$prefix-$case-proxy"
}

proxy_log() {
    docker logs "$prefix-$case-proxy" 2>&1
}

# wait_for_health STATE [SECONDS]: and no longer than the proxy runs.
wait_for_health() {
    has_health_or_ended() {
        [[ $(proxy_state '{{.State.Status}} {{.State.Health.Status}}') =~ \ $1$|^exited ]]
    }
    wait_for "${2:-60}" "health $1" has_health_or_ended "$1" || true
    [[ $(proxy_state '{{.State.Status}} {{.State.Health.Status}}') == "running $1" ]] || {
        echo "error: not $1; the health check and the log say:" >&2
        proxy_state '{{range .State.Health.Log}}{{.Output}}{{end}}' | tail -n 3 >&2
        proxy_log | tail -n 20 >&2
        return 1
    }
}

port_on_host() {
    docker port "$prefix-$case-proxy" 993 | sed -n '1s/.*://p'
}

logs_say() {
    proxy_log | grep -qi -- "$1"
}

# expect WHAT COMMAND…
expect() {
    local what=$1
    shift
    "$@" || {
        echo "error: expected: $what" >&2
        return 1
    }
}

# make_certificate FOLDER: for localhost, as an operator leaves it there.
make_certificate() {
    mkdir "$1"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mounted \
        -addext subjectAltName=DNS:localhost -keyout "$1/privkey.pem" -out "$1/fullchain.pem" 2>/dev/null
}

curl_mail='curl --silent --show-error --max-time 30 --insecure --user demo:demo'

# --- Cases ----------------------------------------------------------------------------------------------------

image_is_small_and_holds_one_program() {
    local bytes
    bytes=$(docker image inspect -f '{{.Size}}' "$image")
    echo "image: $((bytes / 1024)) KiB"
    expect "at most 30 MB" [ "$bytes" -le 30000000 ]
    docker create --name "$prefix-$case-files" "$image" >/dev/null
    docker export "$prefix-$case-files" | tar -t | grep -v '/$' | sort >"$scratch/files"
    # The rest is what the engine puts into every container.
    expect "one program, its configuration and the CAs that ACME directories are trusted by" diff - <(grep -vE '^(\.dockerenv|dev/|etc/(hostname|hosts|mtab|resolv\.conf)$)' "$scratch/files") <<<"etc/imaps-proxy/config.yaml
etc/ssl/certs/ca-certificates.crt
imaps-proxy"
}

mail_is_read_from_the_host_and_from_a_neighbour() {
    start_legacy
    start_proxy
    wait_for_health healthy
    local url
    url="imaps://127.0.0.1:$(port_on_host)/INBOX;MAILINDEX=1"
    $curl_mail "$url" >"$scratch/from-host"
    expect "the message on the host" grep -q '^Subject: Welcome' "$scratch/from-host"
    docker run --rm --name "$prefix-$case-client" --network "$network" "$client_image" \
        $curl_mail "imaps://$case-proxy/INBOX;MAILINDEX=1" >"$scratch/from-neighbour"
    expect "the same message at the neighbour" cmp "$scratch/from-host" "$scratch/from-neighbour"
    docker run --rm --name "$prefix-$case-client" --network "$network" "$client_image" \
        curl -sS --max-time 30 "http://$case-proxy:9143/metrics" >"$scratch/metrics"
    expect "two logins counted" grep -qE '^imaps_proxy_logins_total\{.*result="ok".*\} [12]$' "$scratch/metrics"
}

process_has_no_privileges() {
    start_legacy
    start_proxy
    wait_for_health healthy
    local status
    status=/proc/$(proxy_state '{{.State.Pid}}')/status
    if [ -n "$engine_pid" ]; then
        cp "$status" "$scratch/status"
    else # the engine may run in another machine: look from a container in the same process namespace
        docker run --rm --name "$prefix-$case-look" --pid "container:$prefix-$case-proxy" --user 65532 "$client_image" \
            cat /proc/1/status >"$scratch/status"
    fi
    expect "user 65532" grep -qE '^Uid:\s+65532\s+65532\s+65532\s+65532$' "$scratch/status"
    expect "no capability but NET_BIND_SERVICE" grep -qE '^CapEff:\s+0{13}[04]00$' "$scratch/status"
    expect "no new privileges" grep -qE '^NoNewPrivs:\s+1$' "$scratch/status"
    expect "a seccomp filter" grep -qE '^Seccomp:\s+2$' "$scratch/status"
}

health_follows_the_backend() {
    start_legacy
    start_proxy
    wait_for_health healthy
    docker kill "$prefix-$case-legacy" >/dev/null
    wait_for_health unhealthy 120
    docker start "$prefix-$case-legacy" >/dev/null
    wait_for_health healthy 120
}

stop_tells_an_idle_session_bye() {
    start_legacy
    start_proxy
    wait_for_health healthy
    python3 tests/docker/idle.py 127.0.0.1 "$(port_on_host)" >"$scratch/idle" 2>&1 &
    local client=$!
    wait_for 20 "IDLE" grep -q '^idling' "$scratch/idle" || {
        cat "$scratch/idle" >&2
        return 1
    }
    # With the grace that everybody has who sets none: 10 seconds.
    docker stop "$prefix-$case-proxy" >/dev/null
    expect "an orderly end of the client" wait "$client" || {
        cat "$scratch/idle" >&2
        return 1
    }
    expect "BYE" grep -q '^\* BYE ' "$scratch/idle"
    expect "exit code 0, not $(proxy_state '{{.State.ExitCode}}')" [ "$(proxy_state '{{.State.ExitCode}}')" = 0 ]
}

empty_certs_folder_means_a_self_signed_certificate() {
    # As Docker makes it for `-v ./certs:/certs`: root's, so the proxy cannot write to it.
    mkdir "$scratch/$case"
    start_legacy
    start_proxy -v "$scratch/$case:/certs" -e TLS_NAME=mail.example.org
    wait_for_health healthy
    expect "a word about it in the log" logs_say 'self-\(signed\|made\)'
    openssl s_client -connect "127.0.0.1:$(port_on_host)" </dev/null 2>/dev/null |
        openssl x509 -noout -ext subjectAltName >"$scratch/san"
    expect "the name asked for" grep -q 'DNS:mail.example.org' "$scratch/san"
}

mounted_certificate_is_served() {
    make_certificate "$scratch/$case"
    # Only root may give a file away. Elsewhere the engine has to let the container read it as it is.
    [ "$(id -u)" != 0 ] && chmod 0644 "$scratch/$case/privkey.pem" || chown 65532 "$scratch/$case/privkey.pem"
    start_legacy
    start_proxy -v "$scratch/$case:/certs:ro"
    wait_for_health healthy
    # Checked against the certificate itself, no --insecure.
    curl -sS --max-time 30 --user demo:demo --cacert "$scratch/$case/fullchain.pem" \
        "imaps://localhost:$(port_on_host)/INBOX;MAILINDEX=1" --resolve "localhost:$(port_on_host):127.0.0.1" >"$scratch/mail"
    expect "the message" grep -q '^Subject: Welcome' "$scratch/mail"
}

missing_backend_is_a_readable_error() {
    local code=0
    docker run --name "$prefix-$case-proxy" "$image" >"$scratch/output" 2>&1 || code=$?
    cat "$scratch/output"
    expect "exit code 2, not $code" [ $code = 2 ]
    expect "the name of what is missing" grep -q BACKEND "$scratch/output"
    expect "no panic" [ -z "$(grep -i panicked "$scratch/output" || true)" ]
}

host_network_works_as_root_with_one_capability() {
    # As the Dockerfile says. An address of 127/8 that is nobody else's, so that port 993 is free. Root without
    # capabilities writes to nobody's folder, so it comes with a certificate.
    make_certificate "$scratch/$case"
    docker run -d --name "$prefix-$case-proxy" --network host --user 0:0 \
        -v "$scratch/$case:/certs:ro" -e BACKEND=127.0.93.1:143 -e LISTEN=127.0.93.1:993 -e METRICS=127.0.93.1:9143 \
        --read-only --cap-drop ALL --cap-add NET_BIND_SERVICE --security-opt no-new-privileges "$image" >/dev/null
    # Nobody serves that backend: not ready, but the port is bound.
    wait_for 20 "port 993 of the host" bash -c ': </dev/tcp/127.0.93.1/993' || {
        proxy_log >&2
        return 1
    }
}

compose_file_brings_up_proxy_and_dovecot() {
    compose=(docker compose) # not local: the trap below runs when the function is gone
    docker compose version >/dev/null 2>&1 || {
        need docker-compose=docker-compose
        compose=(docker-compose)
    }
    # The images were built above, where the engine may need options for that. The port is any free one.
    cat >"$scratch/override.yaml" <<YAML
services:
  proxy: {image: "$image"}
  legacy: {image: "$legacy_image"}
YAML
    compose+=(-p "$prefix-compose" -f deploy/compose.yaml -f "$scratch/override.yaml")
    export IMAPS_PORT=127.0.0.1:0
    "${compose[@]}" config >/dev/null
    trap '"${compose[@]}" down -v >/dev/null 2>&1' EXIT
    "${compose[@]}" up -d --no-build proxy legacy >"$scratch/compose" 2>&1 || {
        cat "$scratch/compose" >&2
        return 1
    }
    local id port
    id=$("${compose[@]}" ps -q proxy)
    is_healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$id")" = healthy ]; }
    wait_for 60 "the health of the proxy in Compose" is_healthy || {
        "${compose[@]}" logs >&2
        return 1
    }
    port=$(docker port "$id" 993 | sed -n '1s/.*://p')
    $curl_mail "imaps://127.0.0.1:$port/INBOX;MAILINDEX=1" >"$scratch/compose-mail"
    expect "mail through the Compose deployment" grep -q '^Subject: Welcome' "$scratch/compose-mail"
}

# --- All of it ------------------------------------------------------------------------------------------------

need curl=curl python3=python3 openssl=openssl
start_engine

echo "building the images"
build() {
    local name=$1
    shift
    docker build "${build_options[@]}" -t "$name" "$@" >"$scratch/build.log" 2>&1 || {
        tail -n 40 "$scratch/build.log" >&2
        die "docker build of $name failed"
    }
}
build "$image" "${rust_image[@]}" .
build "$legacy_image" "${debian_image[@]}" deploy/dovecot
build "$client_image" -f tests/docker/client.Dockerfile tests/docker
docker network create "$network" >/dev/null

cases=("$@")
[ ${#cases[@]} -gt 0 ] || mapfile -t cases < <(sed -n '/^# --- Cases/,/^# --- All/s/^\([a-z_]*\)() {$/\1/p' "$0")
passed=0 failed=0
for case in "${cases[@]}"; do
    echo "--- $case"
    began=$SECONDS
    # In a subshell of its own, or set -e would not hold inside.
    set +e
    (
        set -e
        "$case"
    )
    status=$?
    set -e
    if [ $status = 0 ]; then
        passed=$((passed + 1))
        echo "ok ($((SECONDS - began)) s)"
    else
        failed=$((failed + 1))
        echo "FAILED: $case"
    fi
    ids=$(docker ps -aq --filter "name=$prefix-$case")
    [ -z "$ids" ] || docker rm -fv $ids >/dev/null
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
