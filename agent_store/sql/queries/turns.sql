-- One statement decides and writes. The session's row lock orders concurrent accepts; what ON CONFLICT sees is its newest
-- version, so the decision is never taken on a stale one. No row at all: the lease is not live. Null id: nothing was
-- written, because the queue is full. A repeated turn id or idempotency key breaks a unique index and undoes everything.
-- name: accept
WITH lease AS (
    SELECT 1 FROM abide.runtime_instances
    WHERE agent_id = $1 AND instance = $6 AND epoch = $7 AND expires_at > now()
), session AS (
    INSERT INTO abide.sessions AS s
        (agent_id, id, user_id, name, active_turn, token, next_turn_seq, next_seq, queued, steps)
    SELECT $1, $5, $2, $3, $4, 1, 2, 2, 0, 0 FROM lease
    ON CONFLICT (agent_id, user_id, name) DO UPDATE SET
        active_turn = CASE WHEN s.active_turn IS NULL AND s.queued = 0 THEN excluded.active_turn ELSE s.active_turn END,
        token = s.token + (s.active_turn IS NULL AND s.queued = 0)::int,
        next_turn_seq = s.next_turn_seq + 1,
        next_seq = s.next_seq + (s.active_turn IS NULL AND s.queued = 0)::int,
        queued = s.queued + (s.active_turn IS NOT NULL OR s.queued > 0)::int,
        last_active_at = now()
    WHERE s.queued < $12 OR (s.active_turn IS NULL AND s.queued = 0)
    RETURNING s.id, s.token, s.next_turn_seq - 1 AS turn_seq, s.next_seq - 1 AS seq, s.steps,
        coalesce(s.active_turn = $4, false) AS runs
), turn AS (
    INSERT INTO abide.turns
        (agent_id, session_id, id, turn_seq, revision, idempotency_key, request_hash, status, is_queued, started_at, attempts,
         token, first_seq, pending_content, key_id)
    SELECT $1, id, $4, turn_seq, $13, $10, $11,
        CASE WHEN runs THEN 'running' ELSE 'queued' END,
        NOT runs,
        CASE WHEN runs THEN now() END,
        runs::int,
        CASE WHEN runs THEN token ELSE 0 END,
        CASE WHEN runs THEN seq END,
        CASE WHEN NOT runs THEN $8::bytea END,
        CASE WHEN NOT runs THEN $9 END
    FROM session
    RETURNING created_at
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance)
    SELECT $1, id, $4, $7, $6 FROM session WHERE runs
), message AS (
    INSERT INTO abide.messages (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content, key_id)
    SELECT $1, id, $4, seq, turn_seq, 0, 'user', $8, $9 FROM session WHERE runs
)
SELECT session.*, turn.created_at FROM lease LEFT JOIN session ON true LEFT JOIN turn ON true

-- The turn that an accepted id or idempotency key stands for; the id wins.
-- name: find_accepted
SELECT t.id, t.agent_id, t.session_id, s.name AS session_name, s.user_id, t.turn_seq, t.status, t.attempts, t.model,
    t.error_type, t.error_message, t.created_at, t.finished_at,
    r.turn_id AS reply_turn_id, r.turn_index AS reply_index, r.content AS reply, r.key_id AS reply_key_id,
    t.request_hash, t.idempotency_key, t.token, s.steps AS session_steps,
    coalesce(a.instance = $6 AND a.epoch = $7, false) AS is_held
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
LEFT JOIN abide.active_turns a ON a.agent_id = t.agent_id AND a.session_id = t.session_id AND a.turn_id = t.id
LEFT JOIN abide.messages r ON r.agent_id = t.agent_id AND r.session_id = t.session_id AND r.seq = t.reply_seq
WHERE t.agent_id = $1 AND t.id = coalesce(
    (SELECT id FROM abide.turns WHERE agent_id = $1 AND id = $2),
    (SELECT k.id
     FROM abide.sessions n JOIN abide.turns k ON k.agent_id = n.agent_id AND k.session_id = n.id
     WHERE n.agent_id = $1 AND n.user_id = $4 AND n.name = $5 AND k.idempotency_key = $3))

-- The session's row alone decides, as an update that had to wait looks again at its newest version: active turn and token are
-- those of the claim, or nothing is written. User, name and turn_seq are what the claim says they are; they are here so that
-- every index of these tables leads to one row: on tables without statistics all indexes cost the same to the planner, and
-- a plan made then is kept (reading all turns of the agent for every turn was seen).
-- name: complete
WITH session AS (
    UPDATE abide.sessions SET
        active_turn = NULL,
        next_seq = next_seq + cardinality($14::text[]),
        steps = steps + $9,
        last_active_at = now()
    WHERE agent_id = $1 AND id = $2 AND active_turn = $3 AND token = $4 AND user_id = $20 AND name = $21
        AND EXISTS (SELECT FROM abide.runtime_instances WHERE agent_id = $1 AND instance = $5 AND epoch = $6)
    RETURNING user_id, name, next_seq - cardinality($14::text[]) AS seq, queued > 0 AS is_waiting
), freed AS (
    DELETE FROM abide.active_turns a USING session WHERE a.agent_id = $1 AND a.session_id = $2
), turn AS (
    UPDATE abide.turns t SET
        status = $7, model = $8, steps = $9, input_tokens = $10, output_tokens = $11, error_type = $12, error_message = $13,
        reply_seq = session.seq + $18::int, finished_at = now()
    FROM session
    WHERE t.agent_id = $1 AND t.id = $3 AND t.session_id = $2 AND t.turn_seq = $22
    RETURNING t.turn_seq, t.attempts, t.created_at, t.finished_at
), messages AS (
    INSERT INTO abide.messages
        (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content, tool_calls, tool_call_id, key_id)
    SELECT $1, $2, $3, session.seq + m.n - 1, turn.turn_seq, m.n, m.role, m.content, m.tool_calls, m.tool_call_id, $19
    FROM session, turn,
        unnest($14::text[], $15::bytea[], $16::bytea[], $17::text[]) WITH ORDINALITY
            AS m (role, content, tool_calls, tool_call_id, n)
)
SELECT session.user_id, session.name, session.is_waiting, turn.* FROM session, turn

-- What is left to say when complete() found nothing: the turn, the token that finished it, and whether others wait.
-- name: find_completed
SELECT t.id, t.agent_id, t.session_id, s.name AS session_name, s.user_id, t.turn_seq, t.status, t.attempts, t.model,
    t.error_type, t.error_message, t.created_at, t.finished_at,
    r.turn_id AS reply_turn_id, r.turn_index AS reply_index, r.content AS reply, r.key_id AS reply_key_id,
    t.token, s.queued > 0 AND s.active_turn IS NULL AS is_waiting
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
LEFT JOIN abide.messages r ON r.agent_id = t.agent_id AND r.session_id = t.session_id AND r.seq = t.reply_seq
WHERE t.agent_id = $1 AND t.id = $2 AND t.token = $3 AND t.finished_at IS NOT NULL

-- The lock looks at the newest version of the session, the search for its turn at the moment the statement began. So a turn
-- that was queued in between is not seen; is_raced then says: once more. A turn that is seen is the oldest one, since turns
-- are queued in order under the session's lock, and one that was started in between is passed over by its own lock.
-- name: start_next
WITH lease AS (
    SELECT 1 FROM abide.runtime_instances
    WHERE agent_id = $1 AND instance = $3 AND epoch = $4 AND expires_at > now()
), session AS (
    SELECT s.id, s.user_id, s.name, s.steps FROM abide.sessions s, lease
    WHERE s.agent_id = $1 AND s.id = $2 AND s.active_turn IS NULL AND s.queued > 0
    FOR UPDATE OF s
), picked AS (
    SELECT t.id, t.turn_seq, t.created_at, t.pending_content, t.key_id
    FROM session JOIN abide.turns t ON t.agent_id = $1 AND t.session_id = session.id
    WHERE t.is_queued
    ORDER BY t.turn_seq
    LIMIT 1
    FOR UPDATE OF t
), claimed AS (
    UPDATE abide.sessions s SET
        active_turn = picked.id, token = s.token + 1, next_seq = s.next_seq + 1, queued = s.queued - 1, last_active_at = now()
    FROM picked
    WHERE s.agent_id = $1 AND s.id = $2
    RETURNING s.token, s.next_seq - 1 AS seq
), started AS (
    UPDATE abide.turns t SET
        status = 'running', attempts = t.attempts + 1, token = claimed.token, first_seq = claimed.seq,
        started_at = now(), is_queued = false, pending_content = NULL, key_id = NULL
    FROM picked, claimed
    WHERE t.agent_id = $1 AND t.id = picked.id
    RETURNING t.attempts
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance)
    SELECT $1, $2, picked.id, $4, $3 FROM picked, claimed
), message AS (
    INSERT INTO abide.messages (agent_id, session_id, turn_id, created_at, seq, turn_seq, turn_index, role, content, key_id)
    SELECT $1, $2, picked.id, picked.created_at, claimed.seq, picked.turn_seq, 0, 'user', picked.pending_content, picked.key_id
    FROM picked, claimed
)
SELECT session.id IS NOT NULL AND picked.id IS NULL AS is_raced,
    picked.id AS turn_id, session.id AS session_id, session.user_id, session.name AS session_name, picked.turn_seq,
    claimed.token, started.attempts, picked.pending_content AS content, picked.key_id, session.steps
FROM lease LEFT JOIN session ON true LEFT JOIN picked ON true LEFT JOIN claimed ON true LEFT JOIN started ON true

-- Turns whose process is gone: raising the token fences it out. And turns that this process runs without knowing it ($5: those
-- it knows), because the answer to its claim got lost: these stay as they are.
-- name: take_over
WITH lease AS (
    SELECT 1 FROM abide.runtime_instances
    WHERE agent_id = $1 AND instance = $2 AND epoch = $3 AND expires_at > now()
), orphan AS (
    SELECT s.id AS session_id, a.turn_id, (NOT (a.instance = $2 AND a.epoch = $3))::int AS taken
    FROM lease, abide.active_turns a
    JOIN abide.sessions s ON s.agent_id = a.agent_id AND s.id = a.session_id AND s.active_turn = a.turn_id
    WHERE a.agent_id = $1 AND (
        NOT EXISTS (
            SELECT FROM abide.runtime_instances r
            WHERE r.agent_id = a.agent_id AND r.instance = a.instance AND r.epoch = a.epoch AND r.expires_at > now())
        OR a.instance = $2 AND a.epoch = $3 AND a.turn_id <> ALL ($5::uuid[]))
    LIMIT $4
    FOR UPDATE OF s, a SKIP LOCKED
), session AS (
    UPDATE abide.sessions s SET token = s.token + orphan.taken FROM orphan
    WHERE s.agent_id = $1 AND s.id = orphan.session_id
    RETURNING s.id, s.user_id, s.name, s.token, s.steps, orphan.turn_id, orphan.taken
), active AS (
    UPDATE abide.active_turns a SET instance = $2, epoch = $3 FROM session
    WHERE a.agent_id = $1 AND a.session_id = session.id
), turn AS (
    UPDATE abide.turns t SET attempts = t.attempts + session.taken, token = session.token, started_at = now() FROM session
    WHERE t.agent_id = $1 AND t.id = session.turn_id
    RETURNING t.id, t.session_id, t.turn_seq, t.attempts, t.first_seq
)
SELECT turn.id AS turn_id, turn.session_id, session.user_id, session.name AS session_name, turn.turn_seq, session.token,
    turn.attempts, m.content, m.key_id, session.steps
FROM lease LEFT JOIN (
    turn
    JOIN session ON session.id = turn.session_id
    JOIN abide.messages m ON m.agent_id = $1 AND m.session_id = turn.session_id AND m.seq = turn.first_seq
) ON true

-- name: list_waiting
SELECT id FROM abide.sessions WHERE agent_id = $1 AND queued > 0 AND active_turn IS NULL LIMIT $2

-- The session is locked first, as everywhere; a turn that was started meanwhile is no longer queued in its newest version.
-- name: cancel_queued
WITH session AS (
    SELECT s.id FROM abide.turns t JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
    WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3
    FOR UPDATE OF s
), cancelled AS (
    UPDATE abide.turns t SET status = 'cancelled', is_queued = false, finished_at = now() FROM session
    WHERE t.agent_id = $1 AND t.id = $2 AND t.is_queued
    RETURNING t.session_id
)
UPDATE abide.sessions s SET queued = s.queued - 1 FROM cancelled WHERE s.agent_id = $1 AND s.id = cancelled.session_id

-- name: get_turn
SELECT t.id, t.agent_id, t.session_id, s.name AS session_name, s.user_id, t.turn_seq, t.status, t.attempts, t.model,
    t.error_type, t.error_message, t.created_at, t.finished_at,
    r.turn_id AS reply_turn_id, r.turn_index AS reply_index, r.content AS reply, r.key_id AS reply_key_id
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
LEFT JOIN abide.messages r ON r.agent_id = t.agent_id AND r.session_id = t.session_id AND r.seq = t.reply_seq
WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3

-- name: load_history
SELECT seq, turn_id, turn_index, role, content, created_at, tool_calls, tool_call_id, key_id
FROM abide.messages
WHERE agent_id = $1 AND session_id = $2 AND turn_seq < $3
    AND turn_id IS DISTINCT FROM (SELECT active_turn FROM abide.sessions WHERE agent_id = $1 AND id = $2)
ORDER BY seq DESC
LIMIT $4
