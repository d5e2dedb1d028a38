#!/bin/sh
# What a bare Debian 12 box needs: the project's own set-up, and a kernel with MACsec.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -qy install make
make -C /opt/lastmile setup
