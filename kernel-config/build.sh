#!/bin/sh
# build.sh: build the guest kernel from guest.config and print the path of its Image.
#
# The result is kept in the cache under a digest of everything it was made from, together with its
# final configuration, its symbols (System.map) and a note of the versions; asking again is instant.
# Standard output carries only the path; progress goes to standard error.
set -eu
export LC_ALL=C
unset MAKEFLAGS ARCH CROSS_COMPILE KBUILD_OUTPUT 2>/dev/null || true

here=$(cd "$(dirname "$0")" && pwd)
cache=${ROTIFER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rotifer}/kernel
work=$cache/work
log=$cache/build.log
needed_kib=2000000 # the unpacked source, its objects and the package
started=$(date +%s)

say() { echo "kernel: [$(($(date +%s) - started)) s] $*" >&2; }
fail() { say "$*"; exit 1; }

# Runs a step of the build quietly; its output is in the log, of which a failure shows the end.
step() { # WHAT COMMAND...
    what=$1
    shift
    "$@" >>"$log" 2>&1 || step_failed "$what"
}
step_failed() { # WHAT
    tail -n 30 "$log" >&2
    fail "$1 failed; the whole output is in $log"
}

check_tools() {
    packages=
    for tool in "$compiler" gcc make bc bison flex xz tar flock; do
        command -v "$tool" >/dev/null && continue
        case $tool in
            aarch64-linux-gnu-gcc) package=gcc-aarch64-linux-gnu ;;
            xz) package=xz-utils ;;
            flock) package=util-linux ;;
            *) package=$tool ;;
        esac
        packages="$packages $package"
    done
    [ -z "$packages" ] || fail "tools are missing; install them with: apt-get install$packages"
}

check_space() {
    free_kib=$(df -Pk "$cache" | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -ge $needed_kib ] ||
        fail "$cache has $((free_kib / 1024)) MiB free and the build needs $((needed_kib / 1024)); free some, or set ROTIFER_CACHE to another disk"
}

# Every line of guest.config must be true of the final configuration: kconfig drops silently what
# it does not know or what lacks a dependency.
check_config() {
    lost=
    while IFS= read -r line; do
        case $line in
            CONFIG_*=n) ! grep -q "^${line%=n}=" "$1" || lost="$lost $line" ;;
            CONFIG_*) grep -qxF "$line" "$1" || lost="$lost $line" ;;
        esac
    done <"$here/guest.config"
    [ -z "$lost" ] || fail "these options of guest.config did not survive into the configuration:$lost"
}

# Compiling takes minutes, so it says every now and then how far it is.
report_progress() {
    while sleep 20 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do # an orphaned sleep holds no pipe open
        say "compiling: $(grep -cE '^  (CC|AS) ' "$log") of about 1230 files"
    done
}

case $(uname -m) in
    aarch64) prefix= ;;
    *) prefix=aarch64-linux-gnu- ;;
esac
compiler=${prefix}gcc
check_tools

mkdir -p "$cache"
[ -e "$cache/source/.complete" ] || say "fetching the source"
"$here/../xtask/debs" "$cache/source" 'linux-source-6.12=6.12.*'
changelog=$cache/source/usr/share/doc/linux-source-6.12/changelog.Debian.gz
version=$(gzip -dc "$changelog" | sed -n '1s/.*(\(.*\)).*/\1/p')
released=$(gzip -dc "$changelog" | sed -n 's/^ -- .*>  *//p' | sed 1q)
versions="linux $version; $($compiler --version | sed 1q); $(${prefix}ld --version | sed 1q)"

digest=$({ cat "$here/guest.config" "$here/build.sh"; echo "$versions"; } | sha256sum | cut -c 1-16)
result=$cache/$digest
[ ! -e "$result/Image" ] || { echo "$result/Image"; exit 0; }

exec 9>"$cache/lock"
flock -n 9 || { say "waiting for another build to finish"; flock 9; }
[ ! -e "$result/Image" ] || { echo "$result/Image"; exit 0; }

rm -rf "$work" # of a build that was killed
check_space
mkdir -p "$work/source" "$work/objects"
: >"$log"
say "unpacking linux $version"
step "unpacking the source" tar -x -C "$work/source" --strip-components 1 \
    --exclude '*/Documentation/*/*' --exclude '*/tools/testing/*' --exclude '*/boot/dts/*/*' \
    --exclude '*/drivers/gpu/drm/amd/include/asic_reg/*' \
    -f "$cache/source/usr/src/linux-source-6.12.tar.xz"

# Takes an initialiser out of the boot. Nothing else is changed in the source.
without_initcall() { # FILE LEVEL NAME
    line="^$2($3);\$"
    [ "$(grep -c "$line" "$work/source/$1")" = 1 ] || fail "$1 of linux $version has no $2($3) to take out"
    sed -i "s/$line//" "$work/source/$1"
}
# They fill /sys/kernel/slab and /sys/module/*/parameters, which nothing in a guest reads, with
# thousands of files: a quarter of all instructions of the boot (see README.md).
without_initcall mm/slub.c late_initcall slab_late_init
without_initcall kernel/params.c late_initcall param_sysfs_builtin_init

set -- -C "$work/source" O="$work/objects" ARCH=arm64 CROSS_COMPILE="$prefix" \
    KBUILD_BUILD_USER=rotifer KBUILD_BUILD_HOST=rotifer KBUILD_BUILD_VERSION=1 KBUILD_BUILD_TIMESTAMP="$released"
step "configuring" make "$@" KCONFIG_ALLCONFIG="$here/guest.config" allnoconfig
check_config "$work/objects/.config"

jobs=$(nproc)
say "compiling with $jobs jobs (about ten minutes of processor time)"
make "$@" -j"$jobs" Image >>"$log" 2>&1 &
compilation=$!
report_progress 9>&- >/dev/null &
reporter=$!
# A compilation that went on without us would keep the lock.
trap 'kill $compilation $reporter 2>/dev/null; say "stopped"; exit 130' INT TERM HUP
compiled=yes
wait $compilation || compiled=no
kill $reporter 2>/dev/null || true
[ $compiled = yes ] || step_failed "compiling"

mkdir "$work/result"
cp "$work/objects/arch/arm64/boot/Image" "$work/objects/System.map" "$work/result/"
cp "$work/objects/.config" "$work/result/config"
echo "$versions" >"$work/result/versions"
sync "$work/result"/*
rm -rf "$result"
mv "$work/result" "$result" # atomic: a result directory is always a finished one
rm -rf "$work"
say "built $(($(wc -c <"$result/Image") / 1024)) KiB"
echo "$result/Image"
