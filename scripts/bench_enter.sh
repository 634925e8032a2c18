#!/bin/sh
# Become one device of the planner's benchmark: enter the cgroups whose `cgroup.procs` $1 lists, then run the rest.
set -eu
for file in $1; do
    echo $$ >"$file"
done
shift
exec "$@"
