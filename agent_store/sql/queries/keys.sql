-- Old to new; the last one encrypts.
-- name: list_keys
SELECT key_id, created_at, wrapping_key_id, wrapped FROM abide.agent_keys WHERE agent_id = $1 ORDER BY created_at, key_id

-- The first key of an agent: nothing happens if there is one by now, or if the agent was erased. Two processes that start at
-- once may both make one; both read content of either.
-- name: make_first_key
INSERT INTO abide.agent_keys (agent_id, key_id, wrapping_key_id, wrapped)
SELECT $1, $2, $3, $4
WHERE NOT EXISTS (SELECT FROM abide.agent_keys WHERE agent_id = $1)
    AND NOT EXISTS (SELECT FROM abide.erased_agents WHERE agent_id = $1)
ON CONFLICT DO NOTHING

-- clock_timestamp, so that a key made later in the same moment is still the newest one.
-- name: add_key
INSERT INTO abide.agent_keys (agent_id, key_id, created_at, wrapping_key_id, wrapped)
SELECT $1, $2, greatest(clock_timestamp(), max(k.created_at) + interval '1 microsecond'), $3, $4
FROM abide.agent_keys k WHERE k.agent_id = $1
HAVING NOT EXISTS (SELECT FROM abide.erased_agents WHERE agent_id = $1)

-- Only if it is still wrapped as it was when it was read.
-- name: rewrap_key
UPDATE abide.agent_keys SET wrapping_key_id = $4, wrapped = $5
WHERE agent_id = $1 AND key_id = $2 AND wrapped = $3

-- A pass over content goes through each table by its primary key, a bounded number of rows at a time; rows that are under the
-- current key already come without their content.
-- name: pass_messages
SELECT session_id, seq, turn_id, turn_index, key_id, true AS has_content,
    CASE WHEN $6 AND key_id IS DISTINCT FROM $5 THEN content END AS content,
    CASE WHEN $6 AND key_id IS DISTINCT FROM $5 THEN tool_calls END AS tool_calls
FROM abide.messages
WHERE agent_id = $1 AND ($2::uuid IS NULL OR (session_id, seq) > ($2, $3::integer))
ORDER BY session_id, seq
LIMIT $4

-- name: rewrite_messages
UPDATE abide.messages m SET content = n.content, tool_calls = n.tool_calls, key_id = $2
FROM unnest($3::uuid[], $4::integer[], $5::text[], $6::bytea[], $7::bytea[])
    AS n (session_id, seq, key_id, content, tool_calls)
WHERE m.agent_id = $1 AND m.session_id = n.session_id AND m.seq = n.seq AND m.key_id IS NOT DISTINCT FROM n.key_id
RETURNING m.seq

-- name: pass_turns
SELECT id, key_id, pending_content IS NOT NULL AS has_content,
    CASE WHEN $5 AND key_id IS DISTINCT FROM $4 THEN pending_content END AS pending_content
FROM abide.turns
WHERE agent_id = $1 AND ($2::uuid IS NULL OR id > $2)
ORDER BY id
LIMIT $3

-- A turn that was started meanwhile has no pending content any more: it went to messages as it was.
-- name: rewrite_turns
UPDATE abide.turns t SET pending_content = n.content, key_id = $2
FROM unnest($3::uuid[], $4::text[], $5::bytea[]) AS n (id, key_id, content)
WHERE t.agent_id = $1 AND t.id = n.id AND t.pending_content IS NOT NULL AND t.key_id IS NOT DISTINCT FROM n.key_id
RETURNING t.id

-- name: pass_states
SELECT session_id, version, key_id, true AS has_content,
    CASE WHEN $5 AND key_id IS DISTINCT FROM $4 THEN document END AS document
FROM abide.agent_states
WHERE agent_id = $1 AND ($2::uuid IS NULL OR session_id > $2)
ORDER BY session_id
LIMIT $3

-- name: rewrite_states
UPDATE abide.agent_states a SET document = n.document, key_id = $2
FROM unnest($3::uuid[], $4::text[], $5::integer[], $6::bytea[]) AS n (session_id, key_id, version, document)
WHERE a.agent_id = $1 AND a.session_id = n.session_id AND a.key_id IS NOT DISTINCT FROM n.key_id AND a.version = n.version
RETURNING a.session_id

-- name: pass_steps
SELECT session_id, turn_id, step_index, key_id, result IS NOT NULL AS has_content,
    CASE WHEN $7 AND key_id IS DISTINCT FROM $6 THEN result END AS result
FROM abide.steps
WHERE agent_id = $1 AND ($2::uuid IS NULL OR (session_id, turn_id, step_index) > ($2, $3::uuid, $4::integer))
ORDER BY session_id, turn_id, step_index
LIMIT $5

-- The result of a finished step never changes; it may have been forgotten meanwhile.
-- name: rewrite_steps
UPDATE abide.steps s SET result = n.result, key_id = $2
FROM unnest($3::uuid[], $4::uuid[], $5::integer[], $6::text[], $7::bytea[])
    AS n (session_id, turn_id, step_index, key_id, result)
WHERE s.agent_id = $1 AND s.session_id = n.session_id AND s.turn_id = n.turn_id AND s.step_index = n.step_index
    AND s.result IS NOT NULL AND s.key_id IS NOT DISTINCT FROM n.key_id
RETURNING s.step_index

-- name: pass_approvals
SELECT session_id, turn_id, call_id, decided_at, key_id, true AS has_content,
    CASE WHEN $7 AND key_id IS DISTINCT FROM $6 THEN arguments END AS arguments,
    CASE WHEN $7 AND key_id IS DISTINCT FROM $6 THEN comment END AS comment
FROM abide.approvals
WHERE agent_id = $1 AND ($2::uuid IS NULL OR (session_id, turn_id, call_id) > ($2, $3::uuid, $4::text))
ORDER BY session_id, turn_id, call_id
LIMIT $5

-- name: rewrite_approvals
UPDATE abide.approvals p SET arguments = n.arguments, comment = n.comment, key_id = $2
FROM unnest($3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::timestamptz[], $8::bytea[], $9::bytea[])
    AS n (session_id, turn_id, call_id, key_id, decided_at, arguments, comment)
WHERE p.agent_id = $1 AND p.session_id = n.session_id AND p.turn_id = n.turn_id AND p.call_id = n.call_id
    AND p.key_id IS NOT DISTINCT FROM n.key_id AND p.decided_at IS NOT DISTINCT FROM n.decided_at
RETURNING p.call_id

-- name: pass_feedback
SELECT session_id, turn_id, at, key_id, content IS NOT NULL AS has_content,
    CASE WHEN $6 AND key_id IS DISTINCT FROM $5 THEN content END AS content
FROM abide.turn_feedback
WHERE agent_id = $1 AND ($2::uuid IS NULL OR (session_id, turn_id) > ($2, $3::uuid))
ORDER BY session_id, turn_id
LIMIT $4

-- name: rewrite_feedback
UPDATE abide.turn_feedback f SET content = n.content, key_id = $2
FROM unnest($3::uuid[], $4::uuid[], $5::text[], $6::timestamptz[], $7::bytea[])
    AS n (session_id, turn_id, key_id, at, content)
WHERE f.agent_id = $1 AND f.session_id = n.session_id AND f.turn_id = n.turn_id
    AND f.key_id IS NOT DISTINCT FROM n.key_id AND f.at = n.at
RETURNING f.turn_id
