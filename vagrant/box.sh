#!/bin/sh
# Gives this box its part of the topology, at every boot: box.sh branch|router|cloud|site-a|site-b
set -eu
cd /opt/lastmile
modprobe -a macsec 8021q vrf
.venv/bin/python -m router.lab.box "$1" /opt/lastmile/vagrant/.vagrant/secrets
if [ "$1" = router ]; then
  systemctl reset-failed lastmile 2>/dev/null || true
  systemd-run --unit=lastmile --property=Restart=on-failure \
    /opt/lastmile/.venv/bin/lastmile run /etc/lastmile/static-keys.yaml
fi
