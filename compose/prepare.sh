#!/bin/sh
# Makes compose/secrets for compose.prod.yaml: what is there stays as it is, so it may be run again.
#
#   postgres-password   password of the role `abide`; the database takes it over at each start
#   abide.env           ABIDE_POSTGRES_URL, with the same password; another URL here means another Postgres
#   api-keys/main       a key for callers; every file in the folder is one
#   encryption-keys/1   key that what agents keep in Postgres is encrypted with; without it a backup cannot be read
#   models/NAME/KEY     what `apiKeySecretRef: {name: NAME, key: KEY}` of an Agent means; put yours there
#
# The folder is closed to other users of this machine. Below it files are readable, since containers run as users of
# their own and Compose cannot change the owner of a file it mounts.
set -eu
cd "$(dirname "$0")"
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

umask 022
[ -d secrets ] || mkdir -m 0700 secrets
mkdir -p secrets/api-keys secrets/encryption-keys secrets/models
[ -s secrets/postgres-password ] || random >secrets/postgres-password
[ -s secrets/abide.env ] ||
  (umask 077 && echo "ABIDE_POSTGRES_URL=postgresql://abide:$(cat secrets/postgres-password)@postgres:5432/abide" >secrets/abide.env)
[ -s secrets/api-keys/main ] || random >secrets/api-keys/main
[ -n "$(ls secrets/encryption-keys)" ] || head -c 32 /dev/urandom | base64 >secrets/encryption-keys/1
echo "ready: compose/secrets holds password, database URL, API key and encryption key"
