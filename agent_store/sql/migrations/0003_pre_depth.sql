-- Turns with tools, approvals, budgets, memories, feedback, encryption keys.

ALTER TABLE abide.turns
    ADD COLUMN merged_into uuid,
    ADD COLUMN cost_micros bigint,
    ADD COLUMN currency text,
    ADD COLUMN is_alone boolean,
    ADD COLUMN pending_approvals integer;
COMMENT ON COLUMN abide.turns.merged_into IS 'The turn that answers this one too (session.whenBusy: Merge); it has the same outcome.';
COMMENT ON COLUMN abide.turns.cost_micros IS 'What its model calls cost, in millionths of the currency; null: no price is known.';
COMMENT ON COLUMN abide.turns.pending_approvals IS 'Approvals it still waits for; counts down to 0.';
COMMENT ON COLUMN abide.turns.is_alone IS 'It was begun with no other turn beside it, since processes that ran it had ended; if this one ends too, it is to blame.';

ALTER TABLE abide.active_turns ADD COLUMN cancel_requested boolean, ADD COLUMN is_interrupted boolean;
COMMENT ON COLUMN abide.active_turns.cancel_requested IS 'Another process was asked to cancel the turn; its owner looks here.';
COMMENT ON COLUMN abide.active_turns.is_interrupted IS 'It is to be cancelled since a newer message came (session.whenBusy: Interrupt).';
CREATE INDEX active_turns_cancelled ON abide.active_turns (agent_id) WHERE cancel_requested;

-- Approvals: tool calls that wait for a person ------------------------------------------------------------------------

CREATE TABLE abide.approvals (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    decided_at timestamptz,
    call_id text NOT NULL,
    tool text NOT NULL,
    on_timeout text NOT NULL,
    decision text,
    decided_by text,
    arguments bytea NOT NULL,
    comment bytea,
    key_id text,
    CONSTRAINT approvals_pkey PRIMARY KEY (agent_id, session_id, turn_id, call_id),
    CONSTRAINT approvals_on_timeout_check CHECK (on_timeout IN ('Approve', 'Reject')),
    CONSTRAINT approvals_decision_check CHECK (decision IN ('approved', 'rejected', 'timed out'))
);
COMMENT ON TABLE abide.approvals IS 'Tool calls for which a turn waits until a person agrees; decision is null until then.';
CREATE INDEX approvals_waiting ON abide.approvals (agent_id, expires_at) WHERE decision IS NULL;

-- Budgets --------------------------------------------------------------------------------------------------------------

CREATE TABLE abide.budget_usage (
    agent_id uuid NOT NULL,
    day date NOT NULL,
    scope text NOT NULL,
    tokens_used bigint NOT NULL DEFAULT 0,
    micros_used bigint NOT NULL DEFAULT 0,
    CONSTRAINT budget_usage_pkey PRIMARY KEY (agent_id, day, scope)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE abide.budget_usage IS 'What was used of each budget, by day: scope is agent, or user: and a user. Money in millionths.';

CREATE TABLE abide.budget_slices (
    agent_id uuid NOT NULL,
    day date NOT NULL,
    scope text NOT NULL,
    instance text NOT NULL,
    epoch bigint NOT NULL,
    serial bigint NOT NULL,
    tokens bigint NOT NULL,
    micros bigint NOT NULL,
    CONSTRAINT budget_slices_pkey PRIMARY KEY (agent_id, day, scope, instance, epoch)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE abide.budget_slices IS 'What each process holds of a budget and has not accounted for; of a process that died it counts as used.';
COMMENT ON COLUMN abide.budget_slices.serial IS 'Number of the newest account of its process: one that is sent again is not counted again.';

-- Accounts for what a process used of one budget and gives it the slice it wants next, as far as the limit allows. `serial`
-- numbers the accounts of the process for this budget: whatever became of the answer, it may send the same one again. The
-- row of budget_usage is locked first, so that used + slices is never above the limit by what is granted here. 0: no limit.
-- Slices of processes that died are counted as used: nobody knows how much of them was. Should that have happened to a
-- process that lives, `slice_*` (what it held) are counted already.
CREATE FUNCTION abide.account_budget(
    agent uuid, process text, process_epoch bigint, budget_day date, budget_scope text, account bigint,
    spent_tokens bigint, spent_micros bigint, slice_tokens bigint, slice_micros bigint,
    want_tokens bigint, want_micros bigint, limit_tokens bigint, limit_micros bigint,
    OUT tokens bigint, OUT micros bigint, OUT tokens_used bigint, OUT micros_used bigint, OUT tokens_held bigint, OUT micros_held bigint
) LANGUAGE plpgsql AS $$
DECLARE
    own abide.budget_slices;
    is_alive boolean;
    lost_tokens bigint;
    lost_micros bigint;
BEGIN
    IF slice_tokens = 0 AND slice_micros = 0 THEN
        INSERT INTO abide.budget_usage (agent_id, day, scope) VALUES (agent, budget_day, budget_scope) ON CONFLICT DO NOTHING;
    END IF;
    SELECT u.tokens_used, u.micros_used INTO tokens_used, micros_used FROM abide.budget_usage u
    WHERE u.agent_id = agent AND u.day = budget_day AND u.scope = budget_scope FOR UPDATE;
    IF NOT FOUND THEN
        -- Erased since the process got its slice, and a late account must not bring it back.
        SELECT 0, 0, 0, 0, 0, 0 INTO tokens, micros, tokens_used, micros_used, tokens_held, micros_held;
        RETURN;
    END IF;
    is_alive := EXISTS (
        SELECT FROM abide.runtime_instances r
        WHERE r.agent_id = agent AND r.instance = process AND r.epoch = process_epoch AND r.expires_at > clock_timestamp());
    SELECT * INTO own FROM abide.budget_slices s
    WHERE s.agent_id = agent AND s.day = budget_day AND s.scope = budget_scope AND s.instance = process AND s.epoch = process_epoch;
    IF own.serial >= account THEN
        -- Sent again, or late: it has been counted, and a later one may have changed the slice since.
        tokens := own.tokens;
        micros := own.micros;
        tokens_held := 0;
        micros_held := 0;
        RETURN;
    END IF;
    WITH dead AS (
        DELETE FROM abide.budget_slices s
        WHERE s.agent_id = agent AND s.day = budget_day AND s.scope = budget_scope
            AND NOT (s.instance = process AND s.epoch = process_epoch)
            AND NOT EXISTS (
                SELECT FROM abide.runtime_instances r
                WHERE r.agent_id = agent AND r.instance = s.instance AND r.epoch = s.epoch AND r.expires_at > clock_timestamp())
        RETURNING s.tokens, s.micros
    )
    SELECT coalesce(sum(d.tokens), 0), coalesce(sum(d.micros), 0) INTO lost_tokens, lost_micros FROM dead d;
    SELECT coalesce(sum(s.tokens), 0), coalesce(sum(s.micros), 0) INTO tokens_held, micros_held FROM abide.budget_slices s
    WHERE s.agent_id = agent AND s.day = budget_day AND s.scope = budget_scope
        AND NOT (s.instance = process AND s.epoch = process_epoch);
    IF own.serial IS NULL THEN
        own.tokens := 0;
        own.micros := 0;
        spent_tokens := greatest(spent_tokens - slice_tokens, 0);
        spent_micros := greatest(spent_micros - slice_micros, 0);
    END IF;
    tokens_used := tokens_used + spent_tokens + lost_tokens;
    micros_used := micros_used + spent_micros + lost_micros;
    tokens := greatest(own.tokens - spent_tokens, 0);
    micros := greatest(own.micros - spent_micros, 0);
    -- Whose lease has ended may give back, but gets nothing more.
    tokens := greatest(0, least(CASE WHEN is_alive THEN want_tokens ELSE least(want_tokens, tokens) END,
        CASE WHEN limit_tokens > 0 THEN limit_tokens - tokens_used - tokens_held ELSE 0 END));
    micros := greatest(0, least(CASE WHEN is_alive THEN want_micros ELSE least(want_micros, micros) END,
        CASE WHEN limit_micros > 0 THEN limit_micros - micros_used - micros_held ELSE 0 END));
    UPDATE abide.budget_usage u
    SET tokens_used = account_budget.tokens_used, micros_used = account_budget.micros_used
    WHERE u.agent_id = agent AND u.day = budget_day AND u.scope = budget_scope;
    INSERT INTO abide.budget_slices (agent_id, day, scope, instance, epoch, serial, tokens, micros)
    VALUES (agent, budget_day, budget_scope, process, process_epoch, account, account_budget.tokens, account_budget.micros)
    ON CONFLICT (agent_id, day, scope, instance, epoch) DO UPDATE
    SET serial = excluded.serial, tokens = excluded.tokens, micros = excluded.micros;
END
$$;

-- Memories, feedback -----------------------------------------------------------------------------------------------------

CREATE TABLE abide.memories (
    agent_id uuid NOT NULL,
    id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    recalled_at timestamptz,
    importance smallint NOT NULL,
    type text NOT NULL,
    user_id text,
    tags text[] NOT NULL DEFAULT '{}',
    content text NOT NULL,
    words tsvector NOT NULL GENERATED ALWAYS AS (to_tsvector('simple', content)) STORED,
    embedding_model text,
    embedding real[],
    CONSTRAINT memories_pkey PRIMARY KEY (agent_id, id),
    CONSTRAINT memories_type_check CHECK (type IN ('general', 'conversation', 'task_result', 'learning')),
    CONSTRAINT memories_importance_check CHECK (importance BETWEEN 1 AND 10)
);
COMMENT ON TABLE abide.memories IS 'What an agent remembers beyond a session; user_id null: of nobody in particular. Not encrypted: it is searched.';
CREATE INDEX memories_by_user ON abide.memories (agent_id, user_id, importance DESC, updated_at DESC);

-- Which memories are nearest in meaning to a vector of length 1, of those with a vector of the same model: exact. With
-- pgvector all are compared; without it the thousand that matter most, since Postgres alone takes 0.2 ms for each.
CREATE FUNCTION abide.nearest_memories(
    agent uuid, owner text, wanted_type text, wanted_tags text[], lowest smallint, model text, asked real[], most integer
) RETURNS TABLE (memory_id uuid, distance float8) LANGUAGE plpgsql STABLE AS $$
DECLARE
    place name;
BEGIN
    IF asked IS NULL THEN
        RETURN;
    END IF;
    SELECT n.nspname INTO place FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector';
    IF place IS NULL THEN
        RETURN QUERY
            SELECT c.id, (SELECT -sum(v.x * v.y) FROM unnest(c.embedding, asked) AS v (x, y))::float8
            FROM (
                SELECT m.id, m.embedding FROM abide.memories m
                WHERE m.agent_id = agent AND (m.user_id = owner OR m.user_id IS NULL)
                    AND (wanted_type IS NULL OR m.type = wanted_type) AND m.tags @> wanted_tags AND m.importance >= lowest
                    AND m.embedding_model = model AND cardinality(m.embedding) = cardinality(asked)
                ORDER BY m.importance DESC, m.updated_at DESC LIMIT 1000
            ) c
            ORDER BY 2 LIMIT most;
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT c.id, (c.embedding::%1$I.vector OPERATOR(%1$I.<#>) $7::%1$I.vector)::float8
         FROM (
             SELECT m.id, m.embedding FROM abide.memories m
             WHERE m.agent_id = $1 AND (m.user_id = $2 OR m.user_id IS NULL)
                 AND ($3 IS NULL OR m.type = $3) AND m.tags @> $4 AND m.importance >= $5
                 AND m.embedding_model = $6 AND cardinality(m.embedding) = cardinality($7)
             OFFSET 0
         ) c
         ORDER BY 2 LIMIT $8', place
    ) USING agent, owner, wanted_type, wanted_tags, lowest, model, asked, most;
END
$$;

CREATE TABLE abide.turn_feedback (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    score smallint NOT NULL,
    revision text NOT NULL,
    content bytea,
    key_id text,
    CONSTRAINT turn_feedback_pkey PRIMARY KEY (agent_id, session_id, turn_id),
    CONSTRAINT turn_feedback_score_check CHECK (score BETWEEN -1 AND 1)
);
COMMENT ON TABLE abide.turn_feedback IS 'What users thought of a turn: -1, 0 or 1, and words; the last word counts.';

-- Keys -----------------------------------------------------------------------------------------------------------------------

CREATE TABLE abide.agent_keys (
    agent_id uuid NOT NULL,
    key_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    wrapping_key_id text NOT NULL,
    wrapped bytea NOT NULL,
    CONSTRAINT agent_keys_pkey PRIMARY KEY (agent_id, key_id)
);
COMMENT ON TABLE abide.agent_keys IS 'Data keys, wrapped by a key that is not in the database. The newest one encrypts, the others only decrypt.';

-- What belongs to a session goes with it, the new tables included.
CREATE OR REPLACE FUNCTION abide.delete_session_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM abide.active_turns a USING gone g WHERE a.agent_id = g.agent_id AND a.session_id = g.id;
    DELETE FROM abide.approvals p USING gone g WHERE p.agent_id = g.agent_id AND p.session_id = g.id;
    DELETE FROM abide.messages m USING gone g WHERE m.agent_id = g.agent_id AND m.session_id = g.id;
    DELETE FROM abide.steps s USING gone g WHERE s.agent_id = g.agent_id AND s.session_id = g.id;
    DELETE FROM abide.turn_feedback f USING gone g WHERE f.agent_id = g.agent_id AND f.session_id = g.id;
    DELETE FROM abide.turns t USING gone g WHERE t.agent_id = g.agent_id AND t.session_id = g.id;
    DELETE FROM abide.agent_states d USING gone g WHERE d.agent_id = g.agent_id AND d.session_id = g.id;
    RETURN NULL;
END
$$;
