#!/bin/sh
# PID 1 of the guest (see vm.ts), run by busybox: first as /init of the initrd, then once more on the machine's own root. It
# takes commands from the host, one line "ID" each over the virtio port, and answers "ID EXIT-STATUS". Command ID is the
# script $share/ID/script, its output goes to files beside it. PID 1 must not exit: the kernel would panic.

parameter() { sed -n "s/.*guest\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

if [ "$1" = serve ]; then
  share=$(parameter share)
  export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/run/tmp
  ulimit -n 65536
  set -- /dev/vport*p1
  exec 3<> "$1"
  read -r uptime _ < /proc/uptime
  echo "ready $uptime" >&3
  while read -r id <&3; do
    (
      cd "$share/$id" || exit
      bash script < /dev/null > stdout 2> stderr 3>&-
      echo "$id $?" >&3
    ) &
  done
  while :; do sleep 3600; done
fi

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done

# The machine may change files meanwhile, and `cache=loose` need not notice; nothing of a test's business does
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /lower
mount -t tmpfs -o size=2g tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
share=$(parameter share)
modules=$(parameter modules)
cd /root || exit
for dir in proc sys dev; do mount --move /$dir $dir; done
mkdir -p dev/pts dev/shm lib/modules
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
# Not on /tmp: the repository may be there
mkdir -p run/netns run/lock run/tmp ".$share"
# For what the kernel asks for by itself
mount --bind ".$modules" lib/modules
# Without a cache: the host reads results while they are written
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none,access=any share ".$share"

# At each switch to another process qemu forgets where code is: three agents that start at once take a quarter less so
mount -t debugfs debugfs sys/kernel/debug
for knob in min wakeup; do echo 100000000 > sys/kernel/debug/sched/${knob}_granularity_ns; done
echo 300000000 > sys/kernel/debug/sched/latency_ns

hostname guest
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2

cp /init run/guest
exec switch_root /root /bin/busybox sh /run/guest serve
