#!/bin/bash
# One boot of a whole node: joins the node's cgroups, enters new namespaces, starts the node's services
# and becomes its PID 1. Killing that process cuts the power. wholenode.ts calls this with
#   NODE         the node's name
#   DISK         a directory that survives reboots (config/ in it holds the services' configuration)
#   NETNS        path of the network namespace, already on the underlay
#   CGROUP       cgroup of the node, relative to each hierarchy's root
#   ADDRESSES    the node's addresses, comma-separated
#   PLUGINS      directory of the CNI plugins, or empty: the node has none
#   PROGRAMS     directory of kubelet and kube-proxy
#   WIREGUARD_GO path of wireguard-go
#   LOGS         directory for the services' logs
#   PIDFILE      where to write PID 1's pid, as the machine sees it
set -euo pipefail

# asked before the node has a /sys of its own
filesystem=$(stat -fc %T /sys/fs/cgroup)
unified() { [ "$filesystem" = cgroup2fs ]; }

enter() {
  exec nsenter --net="$NETNS" unshare --mount --uts --ipc --pid --fork --kill-child --propagation private "$0" join
}

# only now, as the process that waits outside must not be in the node's cgroup; 0 is the one that writes
join() {
  if unified; then echo 0 > "/sys/fs/cgroup/$CGROUP/cgroup.procs"
  else for procs in /sys/fs/cgroup/*/"$CGROUP"/cgroup.procs; do echo 0 > "$procs"; done; fi
  exec unshare --cgroup "$0" boot
}

mount_cgroups() {
  if unified; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # a cgroup that hands controllers to its children may hold no process itself
    mkdir /sys/fs/cgroup/init.scope
    while read -r pid; do echo "$pid" > /sys/fs/cgroup/init.scope/cgroup.procs; done < /sys/fs/cgroup/cgroup.procs
    sed 's/\(^\| \)/\1+/g' /sys/fs/cgroup/cgroup.controllers > /sys/fs/cgroup/cgroup.subtree_control
    return
  fi
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while IFS=: read -r _ controllers _; do
    [ "$controllers" ] || continue
    mkdir "/sys/fs/cgroup/${controllers#name=}"
    case $controllers in name=*) controllers=none,$controllers ;; esac
    mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/${controllers#*name=}"
  done < /proc/self/cgroup
}

mount_disk() {
  for dir in etc var opt; do
    mkdir -p "$DISK/$dir" "$DISK/.work/$dir"
    mount -t overlay -o "lowerdir=/$dir,upperdir=$DISK/$dir,workdir=$DISK/.work/$dir" overlay "/$dir"
  done
  # containerd's own overlays cannot lie on an overlay; and nothing of the machine's own CNI may shine through
  for dir in var/lib/containerd var/lib/kubelet var/lib/cni etc/cni/net.d; do
    mkdir -p "$DISK/real/$dir" "/$dir"
    mount --bind "$DISK/real/$dir" "/$dir"
  done
  mkdir -p /opt/cni/bin
  [ -z "$PLUGINS" ] || mount --bind "$PLUGINS" /opt/cni/bin
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock /run/netns /var/log/pods /var/log/containers
}

name_node() {
  hostname "$NODE"
  echo "$NODE" > /etc/hostname
  { echo "127.0.0.1 localhost"; echo "::1 localhost"; for address in ${ADDRESSES//,/ }; do echo "$address $NODE"; done; } > /etc/hosts
  [ -e "$DISK/machine-id" ] || tr -d - < /proc/sys/kernel/random/uuid > "$DISK/machine-id"
  mount --bind "$DISK/machine-id" /etc/machine-id
}

# kubelet sets these for the whole machine, and tells a reboot by boot_id
private_sysctls() {
  mkdir /run/sysctl
  while IFS== read -r name value; do
    echo "$value" > "/run/sysctl/${name//\//.}"
    mount --bind "/run/sysctl/${name//\//.}" "/proc/sys/$name"
  done <<X
vm/overcommit_memory=1
vm/panic_on_oom=0
kernel/panic=10
kernel/panic_on_oops=1
kernel/random/boot_id=$(cat /proc/sys/kernel/random/uuid)
X
}

# what systemd would do: kubelet for one ends when containerd is not ready for it yet
service() {
  until [ -e "/run/stopped/$(basename "$1")" ]; do "$@" || :; sleep 0.2; done >> "$LOGS/$NODE-$(basename "$1").log" 2>&1 < /dev/null &
}

boot() {
  local host_pid
  read -r host_pid _ < /proc/self/stat # /proc is still the machine's here
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount_cgroups
  mount_disk
  name_node
  private_sysctls
  mount --make-rshared /
  cd /
  echo "$host_pid" > "$PIDFILE"

  service containerd --config "$DISK/config/containerd.toml"
  until ctr version > /dev/null 2>&1; do sleep 0.05; done

  # as on a kernel without WireGuard, whatever this one has: a service of the node, which outlives the agent's container
  LOG_LEVEL=error service "$WIREGUARD_GO" -f wigglenet
  until ip link set wigglenet txqueuelen 10000 2> /dev/null; do sleep 0.05; done
  ethtool -K wigglenet tx off > /dev/null # as LightNode.startWireguard does
  service "$PROGRAMS/kubelet" --config="$DISK/config/kubelet.yaml" --kubeconfig="$DISK/config/kubelet.kubeconfig" \
    --hostname-override="$NODE" --node-ip="$ADDRESSES" --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki
  service "$PROGRAMS/kube-proxy" --config="$DISK/config/kube-proxy.yaml"
  : > /run/booted
  exec catatonit -P
}

case ${1:-enter} in
  enter) enter ;;
  join) join ;;
  boot) boot ;;
esac
