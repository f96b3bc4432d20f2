# What the tests need beside the Rust toolchain, installed where that is possible. Sourced, not run.

die() {
    echo "error: $*" >&2
    exit 1
}

# need COMMAND=PACKAGE...: every command (or file, by its whole path) is there afterwards, or this ends with the line that installs it.
need() {
    local pair missing=()
    for pair in "$@"; do
        [[ $pair == /* && -e ${pair%%=*} ]] ||
            PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "missing: ${missing[*]}; on Debian: sudo apt-get install -y --no-install-recommends ${missing[*]}"
    fi
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    # Their services are not wanted: the tests start what they need, in folders of their own.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        made=yes
    fi
    local failed=0
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null || failed=1
    [ -z "$made" ] || rm -f $policy
    [ $failed = 0 ] || die "apt-get could not install ${missing[*]}"
}

# wait_for SECONDS WHAT COMMAND...: asks again until the command succeeds; the time is the limit, not the wait.
wait_for() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || {
            echo "error: gave up waiting for: $what" >&2
            return 1
        }
        sleep 0.1
    done
}
