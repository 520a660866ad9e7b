#!/bin/sh
# What `make million` shows: N connections to one server process, each with a
# user and a topic, through `loadtest soak`. Runs natively and in the guest,
# with any POSIX shell. It leaves million.md with its plots, million.html and
# million.json in OUT.
#
#   N  OUT  ACCEL  TOCSIN  LOADTEST   as run.sh says
#   LIMIT   seconds for everything; what was measured until then is told
#   SLOW    not empty where a CPU is emulated: everything may take minutes
set -eu
began=$(date +%s)
url="ws://127.0.0.1:8080/ws?user=u{n}&topics=all"
hold=60s timeout=30s
set --
where="On this machine itself."
[ "$ACCEL" = native ] || where="In a virtual machine with $ACCEL, $(nproc) CPUs."
if [ -n "${SLOW:-}" ]; then
	# A heartbeat costs such a CPU half a millisecond. At most 1200 a second
	# leave some of it to what is measured, and begin before the hold ends:
	# about as many connections are opened in one.
	ping=$((N / 1200 > 45 ? N / 1200 : 45))
	hold=180s timeout=2m
	where="In a virtual machine whose CPUs are emulated ($ACCEL): times are many times those of a real machine, counts and bytes are not."
	set -- --handshake-timeout=2m --ping-interval=${ping}s --pong-timeout=10m --write-timeout=20m --outbox-age=20m --api-timeout=10m
fi

TOCSIN_API_KEY=make-million
export TOCSIN_API_KEY
# Two threads at least: with one, Go's scheduler makes a lone message cost half as much again.
cpus=$(nproc)
GOMAXPROCS=$((cpus > 2 ? cpus : 2)) "$TOCSIN" serve --dev --listen=127.0.0.1:8080 --api-listen=127.0.0.1:8081 \
	--log-format=text "$@" >"$OUT/tocsin.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

tries=0
until sleep 1 && "$LOADTEST" connect -n 1 --hold=0s --url="$url" >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ "$tries" -lt 60 ] && kill -0 "$server" 2>/dev/null || break
done
# Somebody else's server may be what answers.
if [ "$tries" -ge 60 ] || ! kill -0 "$server" 2>/dev/null; then
	echo "the server did not start:"
	cat "$OUT/tocsin.log"
	exit 1
fi

# INT makes loadtest tell what it has so far.
left=$((LIMIT - $(date +%s) + began))
[ "$left" -gt 10 ] || { echo "no time left: raise LIMIT"; exit 1; }
failed=
timeout -s INT "$left" "$LOADTEST" soak -n "$N" --url="$url" --topic=all --timeout=$timeout --hold=$hold --pid="$server" \
	--json --report="$OUT/million.html" --markdown="$OUT/million.md" --plots="$OUT/million" \
	--remark="$where" >"$OUT/million.json" || failed=soak
# What the server and its kernel counted, for whoever asks why.
wget -q -O "$OUT/million-metrics.txt" http://127.0.0.1:8081/metrics || true
cat /proc/net/netstat /proc/net/snmp /proc/net/sockstat >"$OUT/million-net.txt"
[ ! -s "$OUT/million.md" ] || sed '/^!\[/,$d' "$OUT/million.md"
kill -0 "$server" || failed="$failed server"
[ -z "$failed" ] || { echo "failed: $failed"; exit 1; }
