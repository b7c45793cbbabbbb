# Sourced by the other scripts.
say() { echo "[pith] $*" >&2; }
die() { echo "[pith] error: $*" >&2; exit 1; }

# retry N COMMAND…: tries a command that needs the network again, with growing pauses.
retry() {
  local tries=$1 n=1; shift
  until "$@"; do
    [ "$n" -lt "$tries" ] || return 1
    say "'$1 ${2:-}' failed (try $n of $tries), again in $((n * 5)) s"
    sleep $((n * 5)); n=$((n + 1))
  done
}

# Compile jobs: one a core, but not more than fit in memory (a libtorch file takes about 1 GB).
jobs() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/MemAvailable/ {print int($2 / 1500000)}' /proc/meminfo 2>/dev/null || echo "$cores")
  [ "$memory" -lt 1 ] && memory=1
  echo $((cores < memory ? cores : memory))
}
