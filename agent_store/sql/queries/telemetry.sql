-- name: record_metrics
INSERT INTO abide.agent_metrics (agent_id, metric_type, value, metadata)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::float8[], $4::jsonb[])

-- name: record_error
INSERT INTO abide.agent_errors (agent_id, error_type, message, stack_trace, context, occurred_at)
VALUES ($1, $2, $3, $4, $5, coalesce($6, now()))

-- name: beat
INSERT INTO abide.agent_heartbeats (agent_id, pod, at, details) VALUES ($1, $2, clock_timestamp(), $3)
ON CONFLICT (agent_id, pod) DO UPDATE SET at = excluded.at, details = excluded.details

-- name: heartbeats
SELECT agent_id, pod, at, details FROM abide.agent_heartbeats
WHERE $1::uuid[] IS NULL OR agent_id = ANY ($1)
ORDER BY agent_id, pod

-- One index probe per agent and partition, however many errors there are.
-- name: last_errors
SELECT e.*
FROM (SELECT id FROM abide.agents WHERE $1::uuid[] IS NULL UNION SELECT unnest($1)) a
CROSS JOIN LATERAL (
    SELECT agent_id, error_type, message, stack_trace, context, occurred_at FROM abide.agent_errors
    WHERE agent_id = a.id
    ORDER BY occurred_at DESC
    LIMIT 1
) e

-- The primary key is (agent_id, occurred_at, id), so a page is read backwards from its cursor.
-- name: list_errors
SELECT agent_id, id, error_type, message, '' AS stack_trace, context, occurred_at FROM abide.agent_errors
WHERE agent_id = $1
    AND ($2::text IS NULL OR error_type = $2)
    AND ($3::timestamptz IS NULL OR (occurred_at, id) < ($3, $4::uuid))
ORDER BY occurred_at DESC, id DESC
LIMIT $5

-- name: session_counts
SELECT agent_id, count(*) AS sessions FROM abide.sessions
WHERE $1::uuid[] IS NULL OR agent_id = ANY ($1)
GROUP BY agent_id

-- name: record_event
INSERT INTO abide.system_events (agent_id, event_type, message, details) VALUES ($1, $2, $3, $4)

-- name: maintain_ensure_partitions
SELECT abide.ensure_partitions()

-- name: maintain_drop_old_partitions
SELECT abide.drop_old_partitions($1 * interval '1 second')

-- name: maintain_forget_instances
DELETE FROM abide.runtime_instances r
WHERE r.expires_at < now() - interval '1 day'
    AND NOT EXISTS (SELECT FROM abide.active_turns a WHERE a.agent_id = r.agent_id AND a.instance = r.instance)

-- name: maintain_forget_pods
DELETE FROM abide.agent_heartbeats WHERE at < now() - interval '1 day'

-- What a process wrote that outlived its agent.
-- name: maintain_erase_again
SELECT abide.erase_agent(agent_id) FROM abide.erased_agents WHERE erased_at > now() - interval '2 days'

-- No process lives that long.
-- name: maintain_forget_erased
DELETE FROM abide.erased_agents WHERE erased_at < now() - interval '90 days'
