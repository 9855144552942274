-- One statement decides and writes, for all turns that were accepted at the same moment, each in a session of its own. The
-- session's row lock orders concurrent accepts; what ON CONFLICT sees is its newest version, so the decision is never taken
-- on a stale one. Sessions are locked in the order of n, which is the order of user and name in every such statement. If one
-- of several stays locked, the statement gives up soon ($14), for the others' sake. No row at all: the lease is not live. No
-- row of a turn: nothing was written, because the queue is full. A repeated turn id or idempotency key breaks a unique index
-- and undoes everything.
-- name: accept
WITH lease AS (
    SELECT CASE WHEN cardinality($7::uuid[]) > 1 THEN set_config('lock_timeout', $14, true) END
    FROM abide.runtime_instances
    WHERE agent_id = $1 AND instance = $2 AND epoch = $3 AND expires_at > now()
), input AS (
    SELECT * FROM unnest($7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::bytea[], $12::text[], $13::bytea[])
        WITH ORDINALITY AS i (turn_id, session_id, user_id, name, content, idempotency_key, request_hash, n)
), session AS (
    INSERT INTO abide.sessions AS s
        (agent_id, id, user_id, name, active_turn, token, next_turn_seq, next_seq, queued, steps)
    SELECT $1, input.session_id, input.user_id, input.name, input.turn_id, 1, 2, 2, 0, 0 FROM lease, input ORDER BY n
    ON CONFLICT (agent_id, user_id, name) DO UPDATE SET
        active_turn = CASE WHEN s.active_turn IS NULL AND s.queued = 0 THEN excluded.active_turn ELSE s.active_turn END,
        token = s.token + (s.active_turn IS NULL AND s.queued = 0)::int,
        next_turn_seq = s.next_turn_seq + 1,
        next_seq = s.next_seq + (s.active_turn IS NULL AND s.queued = 0)::int,
        queued = s.queued + (s.active_turn IS NOT NULL OR s.queued > 0)::int,
        last_active_at = now()
    WHERE s.queued < $4 OR (s.active_turn IS NULL AND s.queued = 0)
    RETURNING s.id, s.user_id, s.name, s.active_turn, s.token, s.next_turn_seq - 1 AS turn_seq, s.next_seq - 1 AS seq, s.steps
), accepted AS (
    SELECT s.id, s.token, s.turn_seq, s.seq, s.steps, coalesce(s.active_turn = i.turn_id, false) AS runs,
        i.turn_id, i.content, i.idempotency_key, i.request_hash
    FROM session s JOIN input i ON i.user_id = s.user_id AND i.name = s.name
), turn AS (
    INSERT INTO abide.turns
        (agent_id, session_id, id, turn_seq, revision, idempotency_key, request_hash, status, is_queued, started_at, attempts,
         token, first_seq, pending_content, key_id)
    SELECT $1, id, turn_id, turn_seq, $5, idempotency_key, request_hash,
        CASE WHEN runs THEN 'running' ELSE 'queued' END,
        NOT runs,
        CASE WHEN runs THEN now() END,
        runs::int,
        CASE WHEN runs THEN token ELSE 0 END,
        CASE WHEN runs THEN seq END,
        CASE WHEN NOT runs THEN content END,
        CASE WHEN NOT runs THEN $6 END
    FROM accepted
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance)
    SELECT $1, id, turn_id, $3, $2 FROM accepted WHERE runs
), message AS (
    INSERT INTO abide.messages (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content, key_id)
    SELECT $1, id, turn_id, seq, turn_seq, 0, 'user', content, $6 FROM accepted WHERE runs
)
SELECT accepted.turn_id, accepted.id, accepted.token, accepted.turn_seq, accepted.steps, accepted.runs, now() AS created_at
FROM lease LEFT JOIN accepted ON true

-- The turn that an accepted id or idempotency key stands for; the id wins.
-- name: find_accepted
SELECT t.id, t.agent_id, t.session_id, s.name AS session_name, s.user_id, t.turn_seq, t.status, t.attempts, t.model,
    t.error_type, t.error_message, t.created_at, t.finished_at,
    t.input_tokens, t.output_tokens, t.cost_micros, t.currency,
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

-- All turns that ended at the same moment, each in a session of its own. The session's row alone decides, as a lock that had
-- to wait looks again at its newest version: active turn and token are those of the claim, or nothing is written of that
-- turn. Sessions are locked in the order of n, and not waited for long, as in accept. Turns that were merged into one (e) get
-- its outcome too; what it used is counted once.
--
-- Every row has to be found by all columns of an index, also with a plan that was made when the tables were empty: then all
-- indexes cost the same to the planner, a scan costs no more, and the plan is kept (reading all turns of the agent for every
-- turn was seen). So agent_id comes as a column of the input, not as a parameter an index could be entered with alone; user,
-- name and turn_seq, which the claim knows, are compared too; and the limit, which cuts nothing off, makes the planner
-- expect one row.
-- name: complete
WITH lease AS (
    SELECT CASE WHEN cardinality($5::uuid[]) > 1 THEN set_config('lock_timeout', $28, true) END
    FROM abide.runtime_instances WHERE agent_id = $1 AND instance = $2 AND epoch = $3
), input AS MATERIALIZED (
    SELECT $1::uuid AS agent_id, * FROM unnest(
        $5::uuid[], $6::uuid[], $7::int[], $8::text[], $9::text[], $10::int[], $11::text[], $12::text[], $13::int[],
        $14::int[], $15::int[], $16::bigint[], $17::text[], $18::text[], $19::text[], $20::int[], $21::int[]
    ) WITH ORDINALITY AS i (
        session_id, turn_id, token, user_id, name, turn_seq, status, model, steps,
        input_tokens, output_tokens, cost_micros, currency, error_type, error_message, lines, reply, n)
    ORDER BY n LIMIT (SELECT cardinality($5))
), locked AS (
    SELECT input.* FROM lease CROSS JOIN input JOIN abide.sessions s
        ON s.agent_id = input.agent_id AND s.id = input.session_id AND s.user_id = input.user_id AND s.name = input.name
            AND s.active_turn = input.turn_id AND s.token = input.token
    ORDER BY input.n
    FOR UPDATE OF s
), session AS (
    UPDATE abide.sessions s SET
        active_turn = NULL,
        next_seq = s.next_seq + l.lines,
        steps = s.steps + l.steps,
        last_active_at = now()
    FROM locked l
    WHERE s.agent_id = l.agent_id AND s.id = l.session_id AND s.user_id = l.user_id AND s.name = l.name
    RETURNING l.*, s.next_seq - l.lines AS seq, s.queued > 0 AS is_waiting
), freed AS (
    DELETE FROM abide.active_turns a USING session s WHERE a.agent_id = s.agent_id AND a.session_id = s.session_id
), ended AS MATERIALIZED (
    SELECT s.*, e.id AS ended_id, e.turn_seq AS ended_seq, e.leads
    FROM session s JOIN unnest($29::int[], $30::uuid[], $31::int[], $32::boolean[]) AS e (n, id, turn_seq, leads) ON e.n = s.n
), turn AS (
    UPDATE abide.turns t SET
        status = s.status, model = s.model, error_type = s.error_type, error_message = s.error_message,
        steps = CASE WHEN s.leads THEN s.steps ELSE 0 END,
        input_tokens = CASE WHEN s.leads THEN s.input_tokens ELSE 0 END,
        output_tokens = CASE WHEN s.leads THEN s.output_tokens ELSE 0 END,
        cost_micros = CASE WHEN s.leads THEN s.cost_micros END,
        currency = CASE WHEN s.leads THEN s.currency END,
        reply_seq = s.seq + s.reply, finished_at = now()
    FROM ended s
    WHERE t.agent_id = s.agent_id AND t.id = s.ended_id AND t.session_id = s.session_id AND t.turn_seq = s.ended_seq
    RETURNING s.n, t.id, t.session_id, t.turn_seq, s.seq, s.is_waiting, t.attempts, t.created_at, t.finished_at, s.leads
), messages AS (
    INSERT INTO abide.messages
        (agent_id, session_id, turn_id, seq, turn_seq, turn_index, role, content, tool_calls, tool_call_id, key_id)
    -- After the last of the messages it answers: history is told by turn_seq.
    SELECT $1, turn.session_id, turn.id, turn.seq + m.turn_index - 1,
        (SELECT max(e.ended_seq) FROM ended e WHERE e.n = turn.n), m.turn_index, m.role, m.content,
        m.tool_calls, m.tool_call_id, $4
    FROM turn JOIN unnest($22::int[], $23::int[], $24::text[], $25::bytea[], $26::bytea[], $27::text[])
        AS m (n, turn_index, role, content, tool_calls, tool_call_id) ON m.n = turn.n
    WHERE turn.leads
)
SELECT n, is_waiting, attempts, created_at, finished_at FROM turn WHERE leads

-- What is left to say when complete() found nothing: the turn, the token that finished it, and whether others wait.
-- name: find_completed
SELECT t.id, t.agent_id, t.session_id, s.name AS session_name, s.user_id, t.turn_seq, t.status, t.attempts, t.model,
    t.error_type, t.error_message, t.created_at, t.finished_at,
    t.input_tokens, t.output_tokens, t.cost_micros, t.currency,
    r.turn_id AS reply_turn_id, r.turn_index AS reply_index, r.content AS reply, r.key_id AS reply_key_id,
    t.token, s.queued > 0 AND s.active_turn IS NULL AS is_waiting
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
LEFT JOIN abide.messages r ON r.agent_id = t.agent_id AND r.session_id = t.session_id AND r.seq = t.reply_seq
WHERE t.agent_id = $1 AND t.id = $2 AND t.token = $3 AND t.finished_at IS NOT NULL

-- The lock looks at the newest version of the session, the search for its turn at the moment the statement began. So a turn
-- that was queued in between is not seen; is_raced then says: once more. A turn that is seen is the oldest one, since turns
-- are queued in order under the session's lock, and one that was started in between is passed over by its own lock. Up to $5
-- turns start as one: the oldest leads, and the others have its outcome.
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
    LIMIT $5
    FOR UPDATE OF t
), numbered AS (
    SELECT *, (row_number() OVER (ORDER BY turn_seq))::int AS n, first_value(id) OVER (ORDER BY turn_seq) AS leader FROM picked
), claimed AS (
    UPDATE abide.sessions s SET
        active_turn = leader.id, token = s.token + 1, next_seq = s.next_seq + (SELECT count(*) FROM numbered)::int,
        queued = s.queued - (SELECT count(*) FROM numbered)::int, last_active_at = now()
    FROM numbered leader
    WHERE s.agent_id = $1 AND s.id = $2 AND leader.n = 1
    RETURNING s.token, s.next_seq - (SELECT count(*) FROM numbered)::int AS seq
), started AS (
    UPDATE abide.turns t SET
        status = 'running', attempts = t.attempts + 1, token = claimed.token, first_seq = claimed.seq + p.n - 1,
        started_at = now(), is_queued = false, pending_content = NULL, key_id = NULL, merged_into = nullif(p.leader, p.id)
    FROM numbered p, claimed
    WHERE t.agent_id = $1 AND t.id = p.id
    RETURNING t.id, t.attempts
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance)
    SELECT $1, $2, p.id, $4, $3 FROM numbered p, claimed WHERE p.n = 1
), message AS (
    INSERT INTO abide.messages (agent_id, session_id, turn_id, created_at, seq, turn_seq, turn_index, role, content, key_id)
    SELECT $1, $2, p.id, p.created_at, claimed.seq + p.n - 1, p.turn_seq, 0, 'user', p.pending_content, p.key_id
    FROM numbered p, claimed
)
SELECT session.id IS NOT NULL AND p.id IS NULL AS is_raced,
    p.id AS turn_id, session.id AS session_id, session.user_id, session.name AS session_name, p.turn_seq,
    claimed.token, started.attempts, p.pending_content AS content, p.key_id, session.steps
FROM lease LEFT JOIN session ON true LEFT JOIN numbered p ON true LEFT JOIN claimed ON true
    LEFT JOIN started ON started.id = p.id
ORDER BY p.n

-- Turns whose process is gone: raising the token fences it out. A turn that waited for a person was handed over by nobody ('')
-- and did not fail, so that its attempts stay. And turns that this process runs without knowing it ($5: those
-- it knows), because the answer to its claim got lost: these stay as they are.
-- A lease that ends later than any process asks for (8 s) was written before the clock of Postgres went back: a process that
-- lives replaces it within 2 s, and nobody waits for that of one that died.
-- name: take_over
WITH lease AS (
    SELECT 1 FROM abide.runtime_instances
    WHERE agent_id = $1 AND instance = $2 AND epoch = $3 AND expires_at > now()
), orphan AS (
    SELECT s.id AS session_id, a.turn_id, (NOT (a.instance = $2 AND a.epoch = $3))::int AS taken,
        (a.instance <> '')::int AS failed, coalesce(a.cancel_requested, false) AS is_cancelled
    FROM lease, abide.active_turns a
    JOIN abide.sessions s ON s.agent_id = a.agent_id AND s.id = a.session_id AND s.active_turn = a.turn_id
    WHERE a.agent_id = $1 AND (
        NOT EXISTS (
            SELECT FROM abide.runtime_instances r
            WHERE r.agent_id = a.agent_id AND r.instance = a.instance AND r.epoch = a.epoch
                AND r.expires_at > now() AND r.expires_at < now() + interval '1 minute')
        OR a.instance = $2 AND a.epoch = $3 AND a.turn_id <> ALL ($5::uuid[]))
    LIMIT $4
    FOR UPDATE OF s, a SKIP LOCKED
), session AS (
    UPDATE abide.sessions s SET token = s.token + orphan.taken FROM orphan
    WHERE s.agent_id = $1 AND s.id = orphan.session_id
    RETURNING s.id, s.user_id, s.name, s.token, s.steps, orphan.turn_id, orphan.taken, orphan.failed, orphan.is_cancelled
), active AS (
    UPDATE abide.active_turns a SET instance = $2, epoch = $3 FROM session
    WHERE a.agent_id = $1 AND a.session_id = session.id
), turn AS (
    UPDATE abide.turns t SET
        status = 'running', attempts = t.attempts + session.taken * session.failed, token = session.token, started_at = now()
    FROM session
    WHERE t.agent_id = $1 AND t.id = session.turn_id
    RETURNING t.id, t.session_id, t.turn_seq, t.attempts, t.first_seq, t.is_alone
)
SELECT turn.id AS turn_id, turn.session_id, session.user_id, session.name AS session_name, turn.turn_seq, session.token,
    turn.attempts, m.content, m.key_id, session.steps, session.is_cancelled, coalesce(turn.is_alone, false) AS is_alone
FROM lease LEFT JOIN (
    turn
    JOIN session ON session.id = turn.session_id
    JOIN abide.messages m ON m.agent_id = $1 AND m.session_id = turn.session_id AND m.seq = turn.first_seq
) ON true

-- name: list_waiting
SELECT id FROM abide.sessions WHERE agent_id = $1 AND queued > 0 AND active_turn IS NULL LIMIT $2

-- The messages of the turns that were merged into these.
-- name: load_merged
SELECT t.merged_into, t.id AS turn_id, t.turn_seq, m.content, m.key_id
FROM unnest($2::uuid[], $3::uuid[], $4::int[]) AS leader (session_id, id, turn_seq)
JOIN abide.turns t ON t.agent_id = $1 AND t.session_id = leader.session_id AND t.turn_seq > leader.turn_seq
    AND t.merged_into = leader.id
JOIN abide.messages m ON m.agent_id = $1 AND m.session_id = t.session_id AND m.seq = t.first_seq
ORDER BY t.turn_seq

-- The session is locked first, as everywhere; a turn that was started meanwhile is no longer queued in its newest version. A
-- queued turn is cancelled here, and its message stays in the history. The owner of a running one is told with its next
-- renewal.
-- name: cancel_turn
WITH session AS (
    SELECT s.id, s.next_seq FROM abide.turns t JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
    WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3
    FOR UPDATE OF s
), picked AS (
    SELECT t.id, t.session_id, t.turn_seq, t.created_at, t.pending_content, t.key_id, session.next_seq AS seq
    FROM session JOIN abide.turns t ON t.agent_id = $1 AND t.id = $2
    WHERE t.is_queued
    FOR UPDATE OF t
), cancelled AS (
    UPDATE abide.turns t SET
        status = 'cancelled', is_queued = false, finished_at = now(), first_seq = picked.seq, pending_content = NULL,
        key_id = NULL
    FROM picked
    WHERE t.agent_id = $1 AND t.id = picked.id
), message AS (
    INSERT INTO abide.messages (agent_id, session_id, turn_id, created_at, seq, turn_seq, turn_index, role, content, key_id)
    SELECT $1, session_id, id, created_at, seq, turn_seq, 0, 'user', pending_content, key_id FROM picked
), requested AS (
    UPDATE abide.active_turns a SET cancel_requested = true FROM session
    WHERE a.agent_id = $1 AND a.session_id = session.id AND a.turn_id = $2
)
UPDATE abide.sessions s SET queued = s.queued - 1, next_seq = s.next_seq + 1 FROM picked
WHERE s.agent_id = $1 AND s.id = picked.session_id

-- A newer message ends what is before it: queued turns here, as above, and the running one by its owner. A turn that was
-- queued after it stays, so that of two newer messages the newest is answered whichever asks first.
-- name: interrupt
WITH session AS (
    SELECT s.id, s.next_seq, s.active_turn FROM abide.sessions s WHERE s.agent_id = $1 AND s.id = $2
    FOR UPDATE
), picked AS (
    SELECT t.id, t.session_id, t.turn_seq, t.created_at, t.pending_content, t.key_id, session.next_seq
    FROM session JOIN abide.turns t ON t.agent_id = $1 AND t.session_id = session.id
    WHERE t.is_queued AND t.turn_seq < $3
    ORDER BY t.turn_seq
    FOR UPDATE OF t
), numbered AS (
    SELECT *, next_seq + (row_number() OVER (ORDER BY turn_seq))::int - 1 AS seq FROM picked
), cancelled AS (
    UPDATE abide.turns t SET
        status = 'cancelled', is_queued = false, finished_at = now(), first_seq = p.seq, pending_content = NULL, key_id = NULL,
        error_type = $4, error_message = $5
    FROM numbered p
    WHERE t.agent_id = $1 AND t.id = p.id
), message AS (
    INSERT INTO abide.messages (agent_id, session_id, turn_id, created_at, seq, turn_seq, turn_index, role, content, key_id)
    SELECT $1, session_id, id, created_at, seq, turn_seq, 0, 'user', pending_content, key_id FROM numbered
), requested AS (
    UPDATE abide.active_turns a SET cancel_requested = true, is_interrupted = true
    FROM session JOIN abide.turns t ON t.agent_id = $1 AND t.id = session.active_turn AND t.turn_seq < $3
    WHERE a.agent_id = $1 AND a.session_id = session.id AND a.turn_id = session.active_turn
), counted AS (
    UPDATE abide.sessions s SET queued = s.queued - p.n, next_seq = s.next_seq + p.n
    FROM (SELECT count(*)::int AS n FROM numbered) p
    WHERE s.agent_id = $1 AND s.id = $2 AND p.n > 0
)
SELECT t.id, t.status FROM session JOIN abide.turns t ON t.agent_id = $1 AND t.id = session.active_turn AND t.turn_seq < $3

-- name: get_turn
SELECT t.id, t.agent_id, t.session_id, s.name AS session_name, s.user_id, t.turn_seq, t.status, t.attempts, t.model,
    t.error_type, t.error_message, t.created_at, t.finished_at,
    t.input_tokens, t.output_tokens, t.cost_micros, t.currency,
    r.turn_id AS reply_turn_id, r.turn_index AS reply_index, r.content AS reply, r.key_id AS reply_key_id
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
LEFT JOIN abide.messages r ON r.agent_id = t.agent_id AND r.session_id = t.session_id AND r.seq = t.reply_seq
WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3

-- name: load_history
SELECT seq, turn_id, turn_seq, turn_index, role, content, created_at, tool_calls, tool_call_id, key_id
FROM abide.messages
WHERE agent_id = $1 AND session_id = $2 AND turn_seq < $3
    AND turn_id IS DISTINCT FROM (SELECT active_turn FROM abide.sessions WHERE agent_id = $1 AND id = $2)
ORDER BY seq DESC
LIMIT $4
