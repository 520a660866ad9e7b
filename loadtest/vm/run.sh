#!/bin/sh
# Runs the scenario with N connections to one server: natively where this
# machine's limits allow it, in a virtual machine where they do not.
#
#   N      connections                                    1000000
#   OUT    where the results go                           bin/million
#   LIMIT  seconds for everything                         7200
#   MODE   native, vm, or auto                            auto
#   ACCEL  kvm, tcg, or auto: kvm if a guest boots        auto
#   MEM    MiB of the guest                               2048 and 12.5 KB a connection
#   DOCS   1: copy the page and its plots to docs/        they stay in OUT
# and those of build.sh.
set -eu
cd "$(dirname "$0")/../.."
here=loadtest/vm
N=${N:-1000000} LIMIT=${LIMIT:-7200} MODE=${MODE:-auto} ACCEL=${ACCEL:-auto}
out=${OUT:-bin/million}
cache=${CACHE:-bin/vm}

fail() {
	echo "run.sh: $*" >&2
	exit 1
}
usage() {
	echo "run.sh: $*" >&2
	exit 2
}

# number NAME VALUE
number() {
	case $2 in '' | 0* | *[!0-9]*) usage "$1 is '$2', it must be a number above 0" ;; esac
}
number N "$N"
number LIMIT "$LIMIT"
MEM=${MEM:-$((2048 + N / 82))}
number MEM "$MEM"
case $ACCEL in kvm | tcg | auto) ;; *) usage "ACCEL is '$ACCEL', it must be kvm, tcg or auto" ;; esac
case $MODE in native | vm | auto) ;; *) usage "MODE is '$MODE', it must be native, vm or auto" ;; esac
mkdir -p "$out" "$cache"
out=$(cd "$out" && pwd)
cache=$(cd "$cache" && pwd)
rm -f "$out/status" "$out"/million*

available=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)

# native_fits: can one process of this machine hold N connections?
native_fits() {
	hard=$(ulimit -Hn)
	[ "$hard" = unlimited ] || [ "$hard" -ge $((N + 1000)) ] || return 1
	conntrack=/proc/sys/net/netfilter/nf_conntrack_max
	[ ! -r $conntrack ] || [ "$(cat $conntrack)" -gt $((N + 1000)) ] || return 1
	[ "$available" -ge $((512 + N / 110)) ]
}

run_native() {
	mkdir -p "$cache/native"
	[ -n "${TOCSIN:-}" ] || CGO_ENABLED=0 go build -trimpath -o "$cache/native/tocsin" ./cmd/tocsin
	[ -n "${LOADTEST:-}" ] || CGO_ENABLED=0 go build -trimpath -o "$cache/native/loadtest" ./loadtest
	export N LIMIT ACCEL=native OUT="$out" TOCSIN="${TOCSIN:-$cache/native/tocsin}" LOADTEST="${LOADTEST:-$cache/native/loadtest}"
	ulimit -Sn "$(ulimit -Hn)"
	status=0
	"${SCENARIO:-$here/scenario.sh}" || status=$?
	echo "$status" >"$out/status"
}

# boot ACCELERATOR CPU MEMORY SECONDS CONSOLE RESULTS PARAMETERS: runs one guest
# until it powers off; afterwards $qemu is gone for certain.
qemu=
boot() {
	: >"$5"
	qemu-system-x86_64 -machine q35 -accel "$1" -cpu "$2" -smp 2 -m "$3" \
		-kernel "$cache/vmlinuz" -initrd "$cache/initramfs" \
		-append "console=ttyS0 quiet panic=-1 nowatchdog rcupdate.rcu_cpu_stall_suppress=1 mitigations=off slab_nomerge $7" \
		-nodefaults -no-user-config -display none -no-reboot \
		-serial stdio -serial "file:$6" </dev/null >"$5" 2>&1 &
	qemu=$!
	end=$(($(date +%s) + $4))
	while kill -0 "$qemu" 2>/dev/null && [ "$(date +%s)" -lt "$end" ]; do sleep 0.2; done
	timed_out=
	if kill -0 "$qemu" 2>/dev/null; then timed_out=yes; fi
	stop
}

# stop ends the guest of this run, if there is one, and no other process.
stop() {
	[ -n "$qemu" ] || return 0
	kill "$qemu" 2>/dev/null || true
	wait "$qemu" 2>/dev/null || true
	qemu=
}

# kvm_boots: a /dev/kvm that opens may still not run a guest, so run one.
kvm_boots() {
	[ -w /dev/kvm ] || return 1
	boot kvm host 512 10 "$cache/probe.log" /dev/null probe=1
	grep -q "guest: booted" "$cache/probe.log"
}

run_vm() {
	[ "$available" -ge "$((MEM * 2 / 3))" ] ||
		fail "the guest of $N connections needs about $((MEM * 2 / 3)) MiB, $available MiB are available: ask for fewer with N"
	CACHE=$cache "$here/build.sh"
	trap stop EXIT
	trap 'exit 130' INT TERM HUP
	if [ "$ACCEL" = auto ]; then
		ACCEL=tcg
		if kvm_boots; then ACCEL=kvm; fi
	fi
	accel=tcg,thread=multi cpu=max slow=" SLOW=yes"
	if [ "$ACCEL" = kvm ]; then accel=kvm cpu=host slow=; fi
	echo "booting a guest: $ACCEL, 2 CPUs, $MEM MiB; at most $LIMIT s"
	rm -f "$out/results.tar.gz"
	: >"$out/console.log"
	tail -n +1 -f --pid=$$ "$out/console.log" &
	follow=$!
	# The guest's own deadline is earlier, so that it can still tell what it measured.
	boot "$accel" "$cpu" "$MEM" "$LIMIT" "$out/console.log" "$out/results.tar.gz" "N=$N LIMIT=$((LIMIT * 9 / 10)) ACCEL=$ACCEL$slow"
	sleep 1 # the last lines
	kill "$follow" 2>/dev/null || true
	gzip -t "$out/results.tar.gz" 2>/dev/null && tar -xzf "$out/results.tar.gz" -C "$out" ||
		fail "the guest sent no results${timed_out:+ within LIMIT=$LIMIT s}, see $out/console.log"
	rm -f "$out/results.tar.gz"
}

if [ "$MODE" = auto ]; then
	MODE=vm
	if native_fits; then MODE=native; fi
fi
echo "$N connections, $MODE"
"run_$MODE"
[ "$(cat "$out/status")" = 0 ] || fail "the scenario failed with status $(cat "$out/status"), see $out"
if [ "${DOCS:-}" = 1 ]; then
	rm -f docs/million-*.svg
	cp "$out/million.md" "$out"/million-*.svg docs/
	echo "docs/million.md and its plots are of this run"
fi
echo "done, results in $out"
