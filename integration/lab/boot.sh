# Boots systemd inside of a host: its first process becomes systemd, on a copy of the
# root file system $1 that is gone with it, in the cgroup $2 and in namespaces of its
# own but for the network, which stays the host's. $3 is run there first. Says which
# process of the host is systemd.
set -e
if [ -z "$inner" ]; then
	echo 0 >"$2/cgroup.procs" # so that it is the root of the cgroups inside
	# It may not touch what is the whole machine's: modules, clock, kernel log.
	exec env inner=1 setpriv --bounding-set=-sys_module,-sys_time,-syslog,-audit_control \
		unshare --mount --pid --cgroup --fork --kill-child /bin/sh -c "$script" sh "$@"
fi
read -r self rest </proc/self/stat # the host's /proc is still there
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir="$1",upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
	: >dev/$device
	mount --bind /dev/$device dev/$device
done
mkdir dev/net dev/pts dev/shm
mknod dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
cat /proc/sys/kernel/hostname >etc/hostname
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(cat etc/hostname)" >etc/hosts
rm etc/resolv.conf # a link to systemd-resolved's, which runs, as Docker does, where prepare unmasks it
: >etc/resolv.conf
# Nor these: sysctls outside of the network are the whole machine's, and so are devices.
for unit in systemd-sysctl.service systemd-modules-load.service systemd-udevd.service systemd-tmpfiles-setup-dev.service \
	systemd-journald-audit.socket systemd-binfmt.service proc-sys-fs-binfmt_misc.automount sys-kernel-debug.mount \
	sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount getty.target apt-daily.timer apt-daily-upgrade.timer \
	systemd-resolved.service docker.service docker.socket containerd.service; do
	ln -sf /dev/null etc/systemd/system/$unit
done
mkdir -p mnt/old
pivot_root . mnt/old
exec chroot . /bin/sh -ec '
	umount -l /mnt/old
	if [ -n "$2" ]; then eval "$2" >&2; fi
	echo "$1"
	exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target </dev/null >/dev/null 2>&1
' sh "$self" "$3"
