-- Everything about one user, for export and erasure; and what users think of turns.
-- name: user_sessions
SELECT id, name, user_id, created_at, last_active_at, next_turn_seq - 1 AS accepted_messages
FROM abide.sessions
WHERE agent_id = $1 AND user_id = $2 AND ($3::text IS NULL OR name > $3)
ORDER BY name
LIMIT $4

-- name: session_turns
SELECT id, turn_seq, status, attempts, model, error_type, error_message, created_at, started_at, finished_at, revision,
    idempotency_key, input_tokens, output_tokens, cost_micros, currency, pending_content, key_id
FROM abide.turns
WHERE agent_id = $1 AND session_id = $2 AND turn_seq > $3
ORDER BY turn_seq
LIMIT $4

-- name: session_feedback
SELECT turn_id, at, score, revision, content, key_id
FROM abide.turn_feedback
WHERE agent_id = $1 AND session_id = $2 AND ($3::uuid IS NULL OR turn_id > $3)
ORDER BY turn_id
LIMIT $4

-- name: session_approvals
SELECT turn_id, call_id, requested_at, decided_at, tool, decision, decided_by, arguments, comment, key_id
FROM abide.approvals
WHERE agent_id = $1 AND session_id = $2 AND ($3::uuid IS NULL OR (turn_id, call_id) > ($3, $4::text))
ORDER BY turn_id, call_id
LIMIT $5

-- name: user_memories
SELECT id, created_at, updated_at, type, importance, tags, content
FROM abide.memories
WHERE agent_id = $1 AND user_id = $2 AND ($3::uuid IS NULL OR id > $3)
ORDER BY id
LIMIT $4

-- name: user_usage
SELECT day, tokens_used, micros_used
FROM abide.budget_usage
WHERE agent_id = $1 AND scope = 'user:' || $2
ORDER BY day

-- Sessions are locked in the order of their names, as accepting messages does; what is in them goes by the trigger. Whoever
-- runs a turn of one finds that it does not own it any more.
-- name: erase_user_sessions
WITH doomed AS (
    SELECT agent_id, id FROM abide.sessions WHERE agent_id = $1 AND user_id = $2 ORDER BY name LIMIT $3 FOR UPDATE
)
DELETE FROM abide.sessions s USING doomed d WHERE s.agent_id = d.agent_id AND s.id = d.id
RETURNING s.id

-- name: erase_user_memories
DELETE FROM abide.memories
WHERE agent_id = $1 AND id = ANY (ARRAY(SELECT id FROM abide.memories WHERE agent_id = $1 AND user_id = $2 LIMIT $3))
RETURNING id

-- Usage before slices, as processes lock them that account for turns; what these still send of the user is not counted.
-- name: erase_user_usage
WITH erased AS (
    DELETE FROM abide.budget_usage WHERE agent_id = $1 AND scope = 'user:' || $2 RETURNING agent_id, day, scope
)
DELETE FROM abide.budget_slices s USING erased e WHERE s.agent_id = e.agent_id AND s.day = e.day AND s.scope = e.scope

-- The lock on the session keeps a concurrent deletion from leaving the feedback behind.
-- name: save_feedback
WITH turn AS (
    SELECT t.agent_id, t.session_id, t.id, t.revision
    FROM abide.turns t JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
    WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3
    FOR KEY SHARE OF s
)
INSERT INTO abide.turn_feedback AS f (agent_id, session_id, turn_id, score, revision, content, key_id)
SELECT agent_id, session_id, id, $4, revision, $5, $6 FROM turn
ON CONFLICT (agent_id, session_id, turn_id) DO UPDATE
SET at = now(), score = excluded.score, content = excluded.content, key_id = excluded.key_id
RETURNING turn_id, at, score, revision, content, key_id

-- name: load_feedback
SELECT f.turn_id, f.at, f.score, f.revision, f.content, f.key_id
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
JOIN abide.turn_feedback f ON f.agent_id = t.agent_id AND f.session_id = t.session_id AND f.turn_id = t.id
WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3
