# Runs as the first process of a host, in namespaces of its own, with the host's
# name as $1. It makes the host's private file systems, says so, and then holds
# the namespaces until its standard input ends, which it does with the process
# that made the lab, however that ends. The kernel then kills all that runs here.
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --move /run/cgroup /sys/fs/cgroup
rmdir /run/cgroup
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc
umount -l /mnt
rm -rf /run/mount # mount's notes
rm -rf /etc/jiji /etc/wireguard /etc/resolv.conf /etc/hosts /etc/hostname
mkdir -m 700 /etc/wireguard
echo "$1" >/etc/hostname
echo "$1" >/proc/sys/kernel/hostname
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$1" >/etc/hosts
: >/etc/resolv.conf
# A new namespace takes these from the machine's, whatever they are there.
for scope in all default; do
	echo 0 >/proc/sys/net/ipv4/conf/$scope/forwarding
	echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
done
if [ -d /proc/sys/net/ipv6 ]; then
	echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra
	echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad # addresses serve at once
fi
trap '' CHLD # orphans leave no zombies
echo ready
exec cat >/dev/null
