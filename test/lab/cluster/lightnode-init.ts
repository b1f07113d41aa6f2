/** What a light node does first, as shell scripts. */

/** Its name is $1, the folder of its disk $2. */
export const initScript = `
hostname "$1"
for d in etc var opt; do
  mkdir -p "$2/$d" "$2/$d.work"
  mount -t overlay -o "lowerdir=/$d,upperdir=$2/$d,workdir=$2/$d.work" overlay "/$d"
done
mkdir -p /etc/cni/net.d /etc/wigglenet /etc/kubernetes/wigglenet /var/lib/cni
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /run/wireguard
: > /run/booted
`;

/** The rest of a boot by systemd, without the machine's own services. */
export const systemdScript = `
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "$1" > /etc/hostname
rm -rf /etc/systemd/system/*
for unit in getty.target systemd-udevd systemd-udev-trigger systemd-logind dbus.socket dbus systemd-sysctl systemd-hwdb-update \
  systemd-update-utmp systemd-update-utmp-runlevel systemd-binfmt systemd-modules-load systemd-random-seed systemd-sysusers \
  systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-journal-flush dev-hugepages.mount dev-mqueue.mount \
  sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
  systemd-remount-fs systemd-machine-id-commit modprobe@configfs modprobe@drm modprobe@efi_pstore modprobe@fuse; do
  case $unit in *.*) ;; *) unit=$unit.service ;; esac
  ln -s /dev/null "/etc/systemd/system/$unit"
done
mkdir -p /run/log/journal
exec env container=lab /lib/systemd/systemd --unit=multi-user.target --log-target=null
`;
