#!/usr/bin/env bash
# The IMAP servers beside Dovecot, for tests/servers.rs. Debian's IMAP servers exclude each other, so these are not
# installed: what the system lacks is downloaded and unpacked below target/servers, and no script or service of a
# package runs. About 20 MB, a few seconds, once.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/packages.sh

# unpack NAME PACKAGE...: the packages, and what they depend on, into target/servers/NAME.
unpack() {
    local folder=$PWD/target/servers/$1
    shift
    [ ! -e "$folder/complete" ] || return 0
    command -v apt-get >/dev/null || die "not Debian: nothing to unpack $* from"
    echo "unpacking $*"
    rm -rf "$folder"
    mkdir -p "$folder/archives/partial"
    # Whatever stands for a mail server is enough for their dependencies; the smallest is left out again.
    download() {
        apt-get -qq install -y --download-only --no-install-recommends --reinstall -o Debug::NoLocking=1 \
            -o Dir::Cache::Archives="$folder/archives" "$@" msmtp-mta >/dev/null
    }
    # The lists of packages may be missing, or too old.
    download "$@" 2>/dev/null || { apt-get -qq update && download "$@"; } || die "apt-get could not download $*"
    rm -f "$folder"/archives/*msmtp*
    for package in "$folder"/archives/*.deb; do
        dpkg-deb -x "$package" "$folder"
    done
    # Nothing is looked up there but programs, libraries and configuration.
    rm -rf "$folder"/archives "$folder"/usr/share "$folder"/usr/include
    touch "$folder/complete"
}

unpack cyrus cyrus-imapd sasl2-bin
unpack courier courier-imap courier-authlib-userdb
