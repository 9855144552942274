-- name: check
SELECT pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') = 'on' AS read_only,
    (SELECT max(version_num) FROM abide.schema_version) AS version

-- Writes some hundred kilobytes to a temporary file: the only writing that needs neither rights nor rows. Fails with 53100
-- on a full disk.
-- name: check_room
DO $$ BEGIN
    PERFORM set_config('work_mem', '64kB', true);
    PERFORM count(*) FROM generate_series(1, 20000);
END $$

-- No row: the agent was erased.
-- name: register
WITH agent AS (
    INSERT INTO abide.agents AS a (id, namespace, name)
    SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM abide.erased_agents WHERE agent_id = $1)
    ON CONFLICT (id) DO UPDATE SET namespace = excluded.namespace, name = excluded.name
    WHERE (a.namespace, a.name) IS DISTINCT FROM (excluded.namespace, excluded.name)
)
INSERT INTO abide.runtime_instances AS r (agent_id, instance, epoch, expires_at)
SELECT $1, $4, nextval('abide.epochs'), clock_timestamp() + $5 * interval '1 second'
WHERE NOT EXISTS (SELECT FROM abide.erased_agents WHERE agent_id = $1)
ON CONFLICT (agent_id, instance) DO UPDATE
SET epoch = excluded.epoch, started_at = excluded.started_at, expires_at = excluded.expires_at
RETURNING epoch

-- And which of its turns the process is to cancel.
-- name: renew
WITH lease AS (
    UPDATE abide.runtime_instances SET expires_at = clock_timestamp() + $4 * interval '1 second'
    WHERE agent_id = $1 AND instance = $2 AND epoch = $3 AND expires_at > '-infinity'
    RETURNING epoch
)
SELECT a.turn_id, coalesce(a.is_interrupted, false) AS is_interrupted
FROM lease LEFT JOIN abide.active_turns a
    ON a.agent_id = $1 AND a.instance = $2 AND a.epoch = lease.epoch AND a.cancel_requested

-- The row stays, so that a late write of this epoch is still told from one of a newer epoch.
-- name: release
UPDATE abide.runtime_instances SET expires_at = '-infinity' WHERE agent_id = $1 AND instance = $2 AND epoch = $3
