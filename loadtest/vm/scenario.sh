#!/bin/sh
# What `make million` shows: N connections to one server process, each with a
# user and a topic; three messages that all of them must have; and a herd of a
# tenth that comes back. Runs natively and in the guest, with any POSIX shell.
#
#   N  OUT  TOCSIN  LOADTEST   as run.sh says
#   LIMIT   seconds for everything
#   SLOW    not empty where a CPU is emulated: everything may take minutes
set -eu
began=$(date +%s)
url="ws://127.0.0.1:8080/ws?user=u{n}&topics=all"
if [ -n "${SLOW:-}" ]; then
	patience=20m
	set -- --handshake-timeout=2m --ping-interval=10m --pong-timeout=10m --write-timeout=20m --drain-rate=20m --api-timeout=10m
else
	patience=5m
	set --
fi

TOCSIN_API_KEY=million
export TOCSIN_API_KEY
# Two threads at least: with one, Go's scheduler makes a lone message cost half as much again.
cpus=$(nproc)
GOMAXPROCS=$((cpus > 2 ? cpus : 2)) "$TOCSIN" serve --dev --listen=127.0.0.1:8080 --api-listen=127.0.0.1:8081 \
	--log-format=text "$@" >"$OUT/tocsin.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

# load NAME COMMAND FLAGS...: runs one scenario of loadtest within what is left
# of the time, and keeps its report. INT makes it tell what it has so far.
load() {
	name=$1
	shift
	left=$((LIMIT - $(date +%s) + began))
	[ "$left" -gt 10 ] || { echo "no time left for $name: raise LIMIT"; return 1; }
	echo "== loadtest $*"
	timeout -s INT "$left" "$LOADTEST" "$@" --pid="$server" --json --report="$OUT/$name.html" >"$OUT/$name.json"
}

# show NAME KEY...: figures of a report.
show() {
	name=$1
	shift
	for key; do
		sed -n "s/^ *\"$key\": \([^,]*\),*\$/$name: $key \1/p" "$OUT/$name.json" | head -n 1
	done
}

tries=0
until "$LOADTEST" connect -n 1 --hold=0s --url="$url" >/dev/null 2>&1; do
	tries=$((tries + 1))
	if [ "$tries" -gt 60 ] || ! kill -0 "$server" 2>/dev/null; then
		echo "the server did not start:"
		cat "$OUT/tocsin.log"
		exit 1
	fi
	sleep 1
done

failed=
load million broadcast -n "$N" --url="$url" --timeout=2m --topic=all --rounds=3 --every=30s --wait=$patience --late=$patience || failed=million
show million connections failed lost connects_per_s resident_bytes expected delivered missing doubled misordered
load herd herd -n "$((N / 10 > 200 ? N / 10 : 200))" --url="$url" --timeout=2m --patience=$patience || failed="$failed herd"
show herd dropped back back_s attempts

{ wget -q -O - http://127.0.0.1:8081/metrics || curl -fsS http://127.0.0.1:8081/metrics; } >"$OUT/metrics.txt" 2>/dev/null ||
	echo "no metrics: neither wget nor curl got them"
sed -n 's/^go_gc_duration_seconds{quantile="1"} /longest GC pause, seconds: /p' "$OUT/metrics.txt"
grep -E '^(VmHWM|VmRSS|Threads)' "/proc/$server/status" | sed 's/^/server: /'
kill -0 "$server" || failed="$failed server"
[ -z "$failed" ] || { echo "failed: $failed"; exit 1; }
