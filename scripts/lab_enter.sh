#!/bin/sh
# Become one lab host, then its sshd. Runs in namespaces of its own (mount, pid, uts, ipc, net), in the host's cgroup.
# Afterwards the login user's home, /tmp, /var/tmp, /dev/shm and /run are this host's own, and / is read-only.
#
# $1 the host's folder   $2 the login user's home   $3 the host's name   $4 size of the home in bytes, 0: no limit
# $5 the path of sshd
set -eu
cd /
umask 022
folder=$1 home=$2 name=$3 disk_bytes=$4 sshd=$5

echo "$name" >/proc/sys/kernel/hostname
mount --bind "$folder" /mnt # the folder may lie below the home or /tmp, which are about to be covered
if [ "$disk_bytes" -gt 0 ]; then
    mount -t tmpfs -o "size=$disk_bytes,mode=0700" tmpfs /mnt/home
fi
mount --bind /mnt/run /run
mount --bind /mnt/home "$home"
mount --bind /mnt/tmp /tmp
mount --bind /mnt/tmp /var/tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
umount --recursive /mnt

if [ -e /etc/shadow ]; then
    mount --bind /run/shadow /etc/shadow # a locked account of the real machine could not log in
fi
for links in /run/without_python/*; do
    [ -d "$links" ] || continue
    read -r real <"$links.path"
    mkdir -p "$links.real"
    mount --bind "$real" "$links.real"
    mount --bind "$links" "$real"
done
mkdir -p "$home/.ssh"
cp /run/authorized_keys "$home/.ssh/authorized_keys"
chmod 0700 "$home" "$home/.ssh"
mount -o remount,bind,ro /

while :; do # as an init does: an sshd that ends is started again
    "$sshd" -D -e -f /run/sshd_config || sleep 0.1
done
