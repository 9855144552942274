-- The session's row, locked against a takeover, says whether the writer still owns the turn; no row back: it does not. A step
-- that has its result never changes again, so that a write repeated after an unknown outcome does no harm.
-- name: write_steps
WITH session AS (
    SELECT 1 FROM abide.sessions WHERE agent_id = $1 AND id = $2 AND active_turn = $3 AND token = $4
    FOR SHARE
), step AS (
    INSERT INTO abide.steps AS s
        (agent_id, session_id, turn_id, step_index, token, started_at, finished_at, kind, name, status, idempotency_key, result,
         key_id)
    SELECT $1, $2, $3, n.step_index, $4, now() - n.started * interval '1 second', now() - n.finished * interval '1 second',
        n.kind, n.name, n.status, n.idempotency_key, n.result, CASE WHEN n.result IS NOT NULL THEN $13 END
    FROM session,
        unnest($5::int[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bytea[], $11::float8[], $12::float8[])
            AS n (step_index, kind, name, status, idempotency_key, result, started, finished)
    ON CONFLICT (agent_id, session_id, turn_id, step_index) DO UPDATE SET
        token = excluded.token, finished_at = excluded.finished_at, status = excluded.status, result = excluded.result,
        key_id = excluded.key_id
    WHERE s.status = 'started'
)
SELECT 1 FROM session

-- name: load_steps
SELECT step_index, kind, name, status, started_at, finished_at, idempotency_key, result, key_id
FROM abide.steps
WHERE agent_id = $1 AND session_id = $2 AND turn_id = $3
ORDER BY step_index

-- name: load_decisions
SELECT call_id, decision, on_timeout, comment, key_id
FROM abide.approvals
WHERE agent_id = $1 AND session_id = $2 AND turn_id = $3 AND decision IS NOT NULL

-- What a finished turn's steps gave is in its messages, save those of a step that was left half done.
-- name: forget_results
UPDATE abide.steps SET result = NULL, key_id = NULL
WHERE agent_id = $1 AND session_id = $2 AND turn_id = $3 AND step_index < $4 AND result IS NOT NULL
    AND EXISTS (SELECT FROM abide.turns WHERE agent_id = $1 AND id = $3 AND finished_at IS NOT NULL)

-- The turn stays the session's active one, but nobody runs it. Nothing happens if it is to be cancelled; it has happened
-- already if the status says so.
-- name: park
WITH session AS (
    SELECT id FROM abide.sessions WHERE agent_id = $1 AND id = $2 AND active_turn = $3 AND token = $4
    FOR UPDATE
), freed AS (
    DELETE FROM abide.active_turns a USING session
    WHERE a.agent_id = $1 AND a.session_id = session.id AND a.turn_id = $3 AND a.cancel_requested IS NOT TRUE
    RETURNING a.session_id
), turn AS (
    UPDATE abide.turns t SET status = 'waiting', is_alone = NULL, pending_approvals = cardinality($5::text[]) FROM freed
    WHERE t.agent_id = $1 AND t.id = $3 AND t.session_id = $2
), approval AS (
    INSERT INTO abide.approvals
        (agent_id, session_id, turn_id, expires_at, call_id, tool, on_timeout, arguments, key_id)
    SELECT $1, $2, $3, now() + n.timeout * interval '1 second', n.call_id, n.tool, n.on_timeout, n.arguments, $10
    FROM freed,
        unnest($5::text[], $6::text[], $7::text[], $8::bytea[], $9::float8[])
            AS n (call_id, tool, on_timeout, arguments, timeout)
)
SELECT EXISTS (SELECT FROM freed)
    OR EXISTS (SELECT FROM abide.turns WHERE agent_id = $1 AND id = $3 AND status = 'waiting') AS is_parked
FROM session

-- name: list_approvals
SELECT p.turn_id, p.session_id, s.name AS session_name, s.user_id, p.call_id, p.tool, p.arguments, p.key_id, p.requested_at,
    p.expires_at, p.on_timeout, p.decision
FROM abide.approvals p
JOIN abide.sessions s ON s.agent_id = p.agent_id AND s.id = p.session_id AND s.active_turn = p.turn_id
WHERE p.agent_id = $1 AND p.decision IS NULL AND ($2::uuid IS NULL OR p.turn_id = $2)
ORDER BY p.expires_at, p.call_id
LIMIT $3

-- name: find_approval
SELECT p.turn_id, p.session_id, s.name AS session_name, s.user_id, p.call_id, p.tool, p.arguments, p.key_id, p.requested_at,
    p.expires_at, p.on_timeout, p.decision
FROM abide.turns t
JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id
JOIN abide.approvals p ON p.agent_id = t.agent_id AND p.session_id = t.session_id AND p.turn_id = t.id
WHERE t.agent_id = $1 AND t.id = $2 AND p.call_id = $3

-- Counting down on the turn's row, not counting rows: of two decisions at once the second sees what the first one left. The
-- last one hands the turn to whoever sweeps next: a row of nobody's. The token rises, so that a park that is repeated after an
-- unknown outcome comes too late.
-- name: decide
WITH session AS (
    SELECT s.id FROM abide.turns t
    JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id AND s.active_turn = t.id
    WHERE t.agent_id = $1 AND t.id = $2
    FOR UPDATE OF s
), decided AS (
    UPDATE abide.approvals p SET
        decision = $4, decided_at = now(), decided_by = $5, arguments = $6, comment = $7, key_id = $8
    FROM session
    WHERE p.agent_id = $1 AND p.session_id = session.id AND p.turn_id = $2 AND p.call_id = $3
        AND p.decision IS NULL AND p.expires_at > now()
    RETURNING p.session_id
), turn AS (
    UPDATE abide.turns t SET pending_approvals = t.pending_approvals - 1 FROM decided
    WHERE t.agent_id = $1 AND t.id = $2
    RETURNING t.session_id, t.id, t.pending_approvals
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance)
    SELECT $1, session_id, id, 0, '' FROM turn WHERE pending_approvals <= 0
    ON CONFLICT (agent_id, session_id) DO NOTHING
), fenced AS (
    UPDATE abide.sessions s SET token = s.token + 1 FROM turn
    WHERE s.agent_id = $1 AND s.id = turn.session_id AND turn.pending_approvals <= 0
)
SELECT pending_approvals <= 0 AS is_woken FROM turn

-- name: expire_approvals
WITH due AS (
    SELECT session_id, turn_id FROM abide.approvals
    WHERE agent_id = $1 AND decision IS NULL AND expires_at <= now()
    ORDER BY expires_at
    LIMIT 100
), session AS (
    SELECT s.id, s.active_turn FROM abide.sessions s
    WHERE s.agent_id = $1 AND EXISTS (SELECT FROM due WHERE due.session_id = s.id AND due.turn_id = s.active_turn)
    FOR UPDATE OF s SKIP LOCKED
), decided AS (
    UPDATE abide.approvals p SET decision = 'timed out', decided_at = now() FROM session
    WHERE p.agent_id = $1 AND p.session_id = session.id AND p.turn_id = session.active_turn
        AND p.decision IS NULL AND p.expires_at <= now()
    RETURNING p.session_id, p.turn_id
), counted AS (
    SELECT session_id, turn_id, count(*)::int AS n FROM decided GROUP BY session_id, turn_id
), turn AS (
    UPDATE abide.turns t SET pending_approvals = t.pending_approvals - counted.n FROM counted
    WHERE t.agent_id = $1 AND t.id = counted.turn_id
    RETURNING t.session_id, t.id, t.pending_approvals
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance)
    SELECT $1, session_id, id, 0, '' FROM turn WHERE pending_approvals <= 0
    ON CONFLICT (agent_id, session_id) DO NOTHING
), fenced AS (
    UPDATE abide.sessions s SET token = s.token + 1 FROM turn
    WHERE s.agent_id = $1 AND s.id = turn.session_id AND turn.pending_approvals <= 0
)
SELECT count(*)::int AS woken FROM turn WHERE pending_approvals <= 0

-- A waiting turn that is to be cancelled is handed over like one that may go on; whoever takes it sees the wish. If it was
-- taken over meanwhile, the wish reaches its owner.
-- name: cancel_waiting
WITH session AS (
    SELECT s.id FROM abide.turns t
    JOIN abide.sessions s ON s.agent_id = t.agent_id AND s.id = t.session_id AND s.active_turn = t.id
    WHERE t.agent_id = $1 AND t.id = $2 AND s.user_id = $3 AND t.status = 'waiting'
    FOR UPDATE OF s
), refused AS (
    UPDATE abide.approvals p SET decision = 'rejected', decided_at = now(), decided_by = $3 FROM session
    WHERE p.agent_id = $1 AND p.session_id = session.id AND p.turn_id = $2 AND p.decision IS NULL
), active AS (
    INSERT INTO abide.active_turns (agent_id, session_id, turn_id, epoch, instance, cancel_requested)
    SELECT $1, id, $2, 0, '', true FROM session
    ON CONFLICT (agent_id, session_id) DO UPDATE SET cancel_requested = true
)
SELECT 1 FROM session

-- name: mark_alone
WITH session AS (
    SELECT id FROM abide.sessions WHERE agent_id = $1 AND id = $2 AND active_turn = $3 AND token = $4
    FOR SHARE
)
UPDATE abide.turns t SET is_alone = nullif($5, false) FROM session
WHERE t.agent_id = $1 AND t.id = $3 AND t.session_id = session.id
RETURNING t.is_alone
