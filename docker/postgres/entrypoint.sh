#!/bin/sh
# Runs Postgres on a volume, and makes the database on the first start. It may be killed at any moment.
#
#   /var/lib/postgresql/data     the volume; the database is in its folder `pgdata`, which appears complete or not at all
#   /run/secrets/abide/password  password of the role `abide`, which owns the database `abide`; read at every start
#
# Arguments are handed to postgres, for example `-c max_connections=300`. SIGTERM and SIGINT end it with a fast
# shutdown: clients are disconnected, data is checkpointed. The superuser `postgres` has no password and can log in
# from inside the container only.
set -eu

volume=${ABIDE_POSTGRES_VOLUME:-/var/lib/postgresql/data}
sockets=${ABIDE_POSTGRES_SOCKETS:-/var/run/postgresql}
password_file=${ABIDE_POSTGRES_PASSWORD_FILE:-/run/secrets/abide/password}
configuration=$(dirname "$0")
data=$volume/pgdata
making=$volume/pgdata.making
major=$(postgres --version | sed 's/^postgres (PostgreSQL) \([0-9]*\).*/\1/')

trap 'exit 143' TERM INT # as process 1 the shell would ignore them until the server runs

say() { echo "abide-postgres: $*" >&2; }
fail() { say "$*"; exit 1; }

# Statements, one per line, in single-user mode, as superuser: single_user DIRECTORY DATABASE STATEMENTS [OPTION…].
# Nothing listens meanwhile. They travel by standard input, so that a password never is in the process list.
single_user() {
  directory=$1 database=$2 statements=$3
  shift 3
  out=$(printf '%s\n' "$statements" | postgres --single -c exit_on_error=on -c log_min_messages=warning \
    -c log_min_error_statement=panic "$@" -D "$directory" "$database" 2>&1) || fail "could not prepare the database: $out"
}

# Nothing needs to be durable before the rename, and everything then: so the files are synced once, at the end.
make_database() {
  say "making the database"
  rm -rf "$making"
  # A builtin locale sorts the same whatever the system's libraries do; Postgres has it since 17.
  [ "$major" -lt 17 ] || locale="--locale-provider=builtin --builtin-locale=C.UTF-8"
  # shellcheck disable=SC2086 # two options
  initdb --pgdata="$making" --username=postgres --auth=reject --encoding=UTF8 --locale=C.UTF-8 ${locale:-} \
    --data-checksums --no-sync --no-instructions >/dev/null
  single_user "$making" postgres 'CREATE ROLE abide LOGIN CREATEROLE;
CREATE DATABASE abide OWNER abide;' -F
  single_user "$making" abide 'CREATE EXTENSION vector;' -F
  initdb --pgdata="$making" --sync-only >/dev/null
  mv "$making" "$data"
  sync "$volume"
}

[ -s "$password_file" ] || fail "$password_file is missing or empty: mount the Secret with the password there"
[ -w "$volume" ] || fail "$volume is not writable by uid $(id -u): the volume must allow it, for example by fsGroup $(id -g)"

# A pod deleted by force may still be running when its successor starts: only one of them may touch the data.
exec 9>"$volume/lock"
flock -n 9 || say "waiting: another Postgres still uses $volume"
flock -w 60 9 || fail "another Postgres still uses $volume; gave up after 60 s, will be tried again"

[ -d "$data" ] || make_database
found=$(cat "$data/PG_VERSION")
[ "$found" = "$major" ] || fail "$data was made by Postgres $found and this is $major: run an image of Postgres $found, dump, and restore here"

quoted=$(sed "s/'/''/g" "$password_file" | tr -d '\n')
single_user "$data" postgres "ALTER ROLE abide PASSWORD '$quoted';"

postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories="$sockets" \
  -c hba_file="$configuration/pg_hba.conf" -c ident_file="$configuration/pg_ident.conf" "$@" &
server=$!
trap 'kill -INT "$server" 2>/dev/null || true' TERM INT
# `wait` also returns when a trapped signal arrives, with the server still running.
status=0
while kill -0 "$server" 2>/dev/null; do
  status=0
  wait "$server" || status=$?
done
say "ended with status $status"
exit "$status"
