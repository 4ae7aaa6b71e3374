#!/bin/sh
# Runs a command of authsvc with the settings of this machine: /usr/local/bin/authsvc.
# As its user: runuser -u authsvc -- authsvc config check
set -ae
. /etc/authsvc/environment
exec /opt/authsvc/bin/authsvc "$@"
