# What the scripts of this folder share; they read it in. It makes a folder for the data ($dir) and sees to it that folder and
# brokers go again, and sets $address1 to $address3 to the lab's hosts.
# shellcheck shell=sh

: "${LAB_HOSTS:?run this in a lab: quorate bench lab --hosts 3 -- $0 ...}"
# shellcheck disable=SC2086 # One word a host.
set -- $LAB_HOSTS
[ $# -ge 3 ] || { echo "a lab of 3 hosts is needed: --hosts 3" >&2; exit 2; }
# shellcheck disable=SC2034 # Some are for who reads this in.
address1=$1 address2=$2 address3=$3

dir=$(mktemp -d)
pids=
stop() {
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT TERM

# The address of host $1.
address_of() {
    echo "$LAB_HOSTS" | cut -d' ' -f"$1"
}

# The rest of the words is run on host $1, in the place of this shell.
on_host() {
    namespace=$(echo "$LAB_NAMESPACES" | cut -d' ' -f"$1")
    shift
    exec ip netns exec "$namespace" "$@"
}

# Runs the rest of the words on host $1, with what they say in the log of node $1, until the end of the script.
start_node() {
    node=$1
    (on_host "$@") >>"$dir/$node.log" 2>&1 &
    pids="$pids $!"
}

# Runs the rest of the words, with what they say in $dir/$2.log, up to $1 times with a second between, and gives up as $3 says.
until_it_does() {
    tries=$1 log=$2 complaint=$3
    shift 3
    until "$@" >"$dir/$log.log" 2>&1; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ]; then
            echo "$complaint:" >&2
            tail -n 5 "$dir/$log.log" "$dir/1.log" >&2
            exit 1
        fi
        sleep 1
    done
}

# Processor time that the nodes have used so far, in ms.
nodes_cpu_ms() {
    hertz=$(getconf CLK_TCK)
    for pid in $pids; do sed 's/.*) //' "/proc/$pid/stat"; done |
        awk -v hertz="$hertz" '{ ticks += $12 + $13 } END { printf "%d\n", ticks * 1000 / hertz }'
}

# Runs the rest of the words, which bring $1 bytes of records, and says what the nodes used for it.
metered() {
    bytes=$1
    shift
    before=$(nodes_cpu_ms)
    "$@"
    used=$(($(nodes_cpu_ms) - before))
    rss=$(for pid in $pids; do grep VmHWM "/proc/$pid/status"; done | awk '{ kib += $2 } END { printf "%d", kib / 1024 }')
    echo "the three nodes: $used ms of processor time, $((used * 1048576 / bytes)) ms a MiB; at most $rss MiB of memory in all"
}
