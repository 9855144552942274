-- name: list_messages
SELECT m.seq, m.turn_id, m.turn_index, m.role, m.content, m.created_at, m.tool_calls, m.tool_call_id, m.key_id
FROM abide.sessions s JOIN abide.messages m ON m.agent_id = s.agent_id AND m.session_id = s.id
WHERE s.agent_id = $1 AND s.user_id = $2 AND s.name = $3 AND m.seq > $4
ORDER BY m.seq
LIMIT $5

-- name: list_sessions
SELECT id, name, user_id, created_at, last_active_at, next_turn_seq - 1 AS accepted_messages
FROM abide.sessions
WHERE agent_id = $1 AND user_id = $2 AND ($3::timestamptz IS NULL OR (last_active_at, id) < ($3, $4::uuid))
ORDER BY last_active_at DESC, id DESC
LIMIT $5

-- name: find_session
SELECT id, name, user_id, created_at, last_active_at, next_turn_seq - 1 AS accepted_messages
FROM abide.sessions
WHERE agent_id = $1 AND user_id = $2 AND name = $3

-- A session nobody has written to yet: the first accept finds it as it would have made it. The update that changes nothing
-- makes the row of an existing session come back.
-- name: open_session
INSERT INTO abide.sessions AS s (agent_id, id, user_id, name, token, next_turn_seq, next_seq, queued, steps)
VALUES ($1, $4, $2, $3, 0, 1, 1, 0, 0)
ON CONFLICT (agent_id, user_id, name) DO UPDATE SET last_active_at = s.last_active_at
RETURNING id, name, user_id, created_at, last_active_at, next_turn_seq - 1 AS accepted_messages

-- name: delete_session
DELETE FROM abide.sessions WHERE agent_id = $1 AND user_id = $2 AND name = $3 RETURNING id

-- The lock on the session keeps a concurrent deletion from leaving the snapshot behind. No row: there is no such session. No
-- version: the snapshot is not of the version the caller expects ($5; null: any, 0: none is there).
-- name: save_state
WITH session AS (
    SELECT agent_id, id FROM abide.sessions WHERE agent_id = $1 AND id = $2 FOR KEY SHARE
), saved AS (
    INSERT INTO abide.agent_states AS a (agent_id, session_id, version, document, key_id)
    SELECT agent_id, id, 1, $3, $4 FROM session
    ON CONFLICT (agent_id, session_id) DO UPDATE
    SET version = a.version + 1, document = excluded.document, key_id = excluded.key_id, updated_at = now()
    WHERE $5::integer IS NULL OR a.version = $5
    RETURNING version, updated_at
)
SELECT saved.version, saved.updated_at FROM session LEFT JOIN saved ON true

-- name: load_state
SELECT version, document, key_id, updated_at FROM abide.agent_states WHERE agent_id = $1 AND session_id = $2

-- name: delete_state
DELETE FROM abide.agent_states WHERE agent_id = $1 AND session_id = $2 RETURNING version

-- Sessions in which nothing happened for so many days; what is busy or locked stays for the next time.
-- name: delete_old_sessions
WITH old AS (
    SELECT id FROM abide.sessions
    WHERE agent_id = $1 AND last_active_at < now() - $2 * interval '1 day' AND active_turn IS NULL AND queued = 0
    LIMIT $3
    FOR UPDATE SKIP LOCKED
)
DELETE FROM abide.sessions s USING old WHERE s.agent_id = $1 AND s.id = old.id
RETURNING s.id

-- name: count_sessions
SELECT count(*) AS sessions FROM abide.sessions WHERE agent_id = $1
