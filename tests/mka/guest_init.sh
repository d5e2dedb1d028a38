#!/bin/sh
# Process 1 of the guest: mounts, modules, then the Python script, then off.
# Arguments come in the environment from the kernel's command line: PYTHON, HERE, RESULTS.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns /run/results /run/modules/lib
mount -t hostfs none /run/results -o "$RESULTS"
ln -s /usr/lib/uml/modules /run/modules/lib/modules
for module in gcm ctr ghash-generic cmac ecb veth bridge macsec; do
    modprobe -d /run/modules "$module"
done
ip link set lo up
cd "$HERE" || poweroff -f
PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 "$PYTHON" interop_guest.py >/run/results/results.json 2>/run/results/log
tail -c 3000000 /tmp/wpa.log >/run/results/wpa.log
poweroff -f
