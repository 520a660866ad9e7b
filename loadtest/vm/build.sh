#!/bin/sh
# Builds what the virtual machine boots: a kernel and an initramfs with a static
# busybox, tocsin, loadtest and the scenario. Works on a fresh Debian or Ubuntu;
# only qemu is installed on the machine, after a question; kernel and busybox go
# into the cache.
#
#   CACHE     where to build                              bin/vm
#   TOCSIN, LOADTEST   static binaries to take            built from this tree
#   SCENARIO  what the guest runs                         loadtest/vm/scenario.sh
#   YES       1: install qemu without a question
#   KERNEL, BUSYBOX    a bzImage and a static busybox to  fetched with apt-get
#             take on a machine without apt-get
set -eu
cd "$(dirname "$0")/../.."
here=loadtest/vm
cache=${CACHE:-bin/vm}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

fail() {
	echo "build.sh: $*" >&2
	exit 1
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the virtual machine needs Linux on x86_64, this is $(uname -sm)"

if ! command -v qemu-system-x86_64 >/dev/null; then
	[ "$(id -u)" = 0 ] || fail "no qemu-system-x86_64: sudo apt-get install qemu-system-x86"
	if [ "${YES:-}" != 1 ]; then
		[ -t 0 ] || fail "no qemu-system-x86_64: YES=1 installs qemu-system-x86 with apt-get"
		printf 'No qemu-system-x86_64. Install qemu-system-x86 on this machine with apt-get? [y/N] '
		read -r answer || answer=
		case $answer in y | Y | yes) ;; *) fail "nothing is installed" ;; esac
	fi
	echo "installing qemu-system-x86"
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends qemu-system-x86; } \
		>"$cache/apt.log" 2>&1 || fail "cannot install qemu-system-x86, see $cache/apt.log"
fi

# fetch PACKAGE: unpacks the newest version of a Debian package into the cache.
fetch() {
	echo "fetching $1"
	rm -f "$cache/$1"_*.deb
	(cd "$cache" && { apt-get download "$1" || { apt-get update && apt-get download "$1"; }; }) \
		>"$cache/apt.log" 2>&1 || fail "cannot download $1, see $cache/apt.log; or set KERNEL and BUSYBOX"
	dpkg -x "$cache/$1"_*.deb "$cache/debian"
	rm -f "$cache/$1"_*.deb
}

if [ -z "${KERNEL:-}" ] && [ ! -s "$cache/vmlinuz" ]; then
	find_image() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1; }
	image=$(find_image)
	if [ -z "$image" ]; then
		apt-get update >"$cache/apt.log" 2>&1 || true
		image=$(find_image)
	fi
	[ -n "$image" ] || fail "apt-get knows no linux-image-cloud-amd64: set KERNEL to a bzImage"
	fetch "$image"
	KERNEL=$cache/debian/boot/vmlinuz-${image#linux-image-}
fi
[ -z "${KERNEL:-}" ] || cp -f "$KERNEL" "$cache/vmlinuz"

if [ -z "${BUSYBOX:-}" ]; then
	BUSYBOX=$cache/debian/bin/busybox
	if [ ! -x "$BUSYBOX" ]; then
		fetch busybox-static
		[ -x "$BUSYBOX" ] || BUSYBOX=$cache/debian/usr/bin/busybox
	fi
fi

root=$cache/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/out"
cp "$BUSYBOX" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp "$here/init" "$root/init"
cp "${SCENARIO:-$here/scenario.sh}" "$root/scenario.sh"
chmod 755 "$root/init" "$root/scenario.sh" "$root/bin/busybox"

# put NAME PACKAGE BINARY: the static binary, or one built from the package.
put() {
	if [ -n "$3" ]; then
		cp "$3" "$root/bin/$1"
	else
		echo "building $1"
		CGO_ENABLED=0 go build -trimpath -o "$root/bin/$1" "$2"
	fi
}
put tocsin ./cmd/tocsin "${TOCSIN:-}"
put loadtest ./loadtest "${LOADTEST:-}"

(cd "$root" && find . | ./bin/busybox cpio -o -H newc 2>/dev/null) >"$cache/initramfs.new"
mv "$cache/initramfs.new" "$cache/initramfs"
