-- The whole schema as it stands after all migrations; a test keeps the two equal.
-- Everything is schema-qualified, and agent_id comes first in every key: row-level security and partitioning by agent can be
-- added without a rewrite. Content that users wrote is bytea with the id of the key that encrypted it (null: plain UTF-8).

CREATE SCHEMA IF NOT EXISTS abide;

-- Agents -------------------------------------------------------------------------------------------------------------

CREATE TABLE abide.agents (
    id uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT agents_pkey PRIMARY KEY (id)
);
-- Not unique: an agent made again under its old name is another agent.
CREATE INDEX agents_by_name ON abide.agents (namespace, name);

-- Epochs never repeat, not even after old instances were removed.
CREATE SEQUENCE abide.epochs AS bigint;

CREATE TABLE abide.runtime_instances (
    agent_id uuid NOT NULL,
    instance text NOT NULL,
    epoch bigint NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT runtime_instances_pkey PRIMARY KEY (agent_id, instance)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE abide.runtime_instances IS 'Process leases: who is alive. Renewed every few seconds; times are the database''s.';

CREATE TABLE abide.agent_heartbeats (
    agent_id uuid NOT NULL,
    pod text NOT NULL,
    at timestamptz NOT NULL,
    details jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT agent_heartbeats_pkey PRIMARY KEY (agent_id, pod)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE abide.agent_heartbeats IS 'The current heartbeat of every pod.';

-- Sessions and turns -------------------------------------------------------------------------------------------------

CREATE TABLE abide.sessions (
    agent_id uuid NOT NULL,
    id uuid NOT NULL,
    active_turn uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_active_at timestamptz NOT NULL DEFAULT now(),
    token integer NOT NULL,
    next_turn_seq integer NOT NULL,
    next_seq integer NOT NULL,
    queued integer NOT NULL,
    steps integer NOT NULL,
    user_id text NOT NULL,
    name text NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (agent_id, id),
    CONSTRAINT sessions_name_key UNIQUE (agent_id, user_id, name)
    -- Room on the page keeps the two updates of every turn off the indexes (heap-only); no index may use a column they change.
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
COMMENT ON COLUMN abide.sessions.active_turn IS 'The one turn that runs. Whoever changes it holds this row''s lock, so that the row alone decides.';
COMMENT ON COLUMN abide.sessions.token IS 'Rises with every start and takeover of a turn; writes with an older one are refused (fencing).';
COMMENT ON COLUMN abide.sessions.queued IS 'Turns that wait behind the active one.';
COMMENT ON COLUMN abide.sessions.steps IS 'Model steps of all finished turns.';
-- For the sweep that starts turns whose session was freed by a process that died before starting the next.
CREATE INDEX sessions_waiting ON abide.sessions (agent_id, id) WHERE queued > 0;

CREATE TABLE abide.turns (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    turn_seq integer NOT NULL,
    attempts integer NOT NULL,
    token integer NOT NULL,
    first_seq integer,
    reply_seq integer,
    steps integer NOT NULL DEFAULT 0,
    input_tokens integer NOT NULL DEFAULT 0,
    output_tokens integer NOT NULL DEFAULT 0,
    is_queued boolean NOT NULL,
    status text NOT NULL,
    model text,
    revision text NOT NULL,
    idempotency_key text,
    request_hash bytea,
    pending_content bytea,
    error_type text,
    error_message text,
    key_id text,
    merged_into uuid,
    cost_micros bigint,
    currency text,
    is_alone boolean,
    pending_approvals integer,
    CONSTRAINT turns_pkey PRIMARY KEY (agent_id, id),
    CONSTRAINT turns_turn_seq_key UNIQUE (agent_id, session_id, turn_seq),
    CONSTRAINT turns_status_check
        CHECK (status IN ('queued', 'running', 'waiting', 'completed', 'fallback', 'failed', 'cancelled'))
    -- status is in no index, so that completing a turn stays off the indexes too; who runs is in active_turns.
) WITH (fillfactor = 95, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON COLUMN abide.turns.attempts IS 'How often the turn was started.';
COMMENT ON COLUMN abide.turns.token IS 'The session''s token when the turn was last started: names the claim that completed it.';
COMMENT ON COLUMN abide.turns.first_seq IS 'seq of its user message, given when it starts.';
COMMENT ON COLUMN abide.turns.reply_seq IS 'seq of its last assistant message.';
COMMENT ON COLUMN abide.turns.is_queued IS 'The same as status queued, in a column that completing does not change.';
COMMENT ON COLUMN abide.turns.pending_content IS 'The user message of a turn that has not started; moves to messages when it starts.';
COMMENT ON COLUMN abide.turns.merged_into IS 'The turn that answers this one too (session.whenBusy: Merge); it has the same outcome.';
COMMENT ON COLUMN abide.turns.cost_micros IS 'What its model calls cost, in millionths of the currency; null: no price is known.';
COMMENT ON COLUMN abide.turns.pending_approvals IS 'Approvals it still waits for; counts down to 0.';
COMMENT ON COLUMN abide.turns.is_alone IS 'It was begun with no other turn beside it, since processes that ran it had ended; if this one ends too, it is to blame.';
CREATE UNIQUE INDEX turns_idempotency_key ON abide.turns (agent_id, session_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX turns_queued ON abide.turns (agent_id, session_id, turn_seq) WHERE is_queued;

CREATE TABLE abide.active_turns (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    epoch bigint NOT NULL,
    instance text NOT NULL,
    cancel_requested boolean,
    is_interrupted boolean,
    CONSTRAINT active_turns_pkey PRIMARY KEY (agent_id, session_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE abide.active_turns IS 'Which process runs which turn: one row per active session, for finding the turns of dead processes.';
COMMENT ON COLUMN abide.active_turns.cancel_requested IS 'Another process was asked to cancel the turn; its owner looks here.';
COMMENT ON COLUMN abide.active_turns.is_interrupted IS 'It is to be cancelled since a newer message came (session.whenBusy: Interrupt).';
CREATE INDEX active_turns_cancelled ON abide.active_turns (agent_id) WHERE cancel_requested;

CREATE TABLE abide.messages (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    seq integer NOT NULL,
    turn_seq integer NOT NULL,
    turn_index smallint NOT NULL,
    role text NOT NULL,
    content bytea NOT NULL,
    tool_calls bytea,
    tool_call_id text,
    key_id text,
    CONSTRAINT messages_pkey PRIMARY KEY (agent_id, session_id, seq),
    CONSTRAINT messages_role_check CHECK (role IN ('user', 'assistant', 'tool'))
);

CREATE TABLE abide.steps (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    turn_id uuid NOT NULL,
    step_index integer NOT NULL,
    token integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    kind text NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    idempotency_key text,
    request bytea,
    result bytea,
    key_id text,
    CONSTRAINT steps_pkey PRIMARY KEY (agent_id, session_id, turn_id, step_index),
    CONSTRAINT steps_kind_check CHECK (kind IN ('model', 'tool')),
    CONSTRAINT steps_status_check CHECK (status IN ('started', 'finished', 'failed'))
);
COMMENT ON TABLE abide.steps IS 'Journal of the steps inside a turn that must not run twice.';

CREATE TABLE abide.agent_states (
    agent_id uuid NOT NULL,
    session_id uuid NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    version integer NOT NULL,
    document bytea NOT NULL,
    key_id text,
    CONSTRAINT agent_states_pkey PRIMARY KEY (agent_id, session_id)
) WITH (fillfactor = 70);
COMMENT ON TABLE abide.agent_states IS 'The newest snapshot of each session; version counts the saves.';

-- What belongs to a session goes with it. A trigger instead of foreign keys: those would lock the session row once more
-- for every message. Its statements see what was committed until the session's row was locked, so nothing stays behind.
CREATE FUNCTION abide.delete_session_rows() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER sessions_delete_rows AFTER DELETE ON abide.sessions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION abide.delete_session_rows();

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

-- Time series, partitioned by week -----------------------------------------------------------------------------------

CREATE TABLE abide.agent_metrics (
    agent_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    value double precision NOT NULL,
    metric_type text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (recorded_at);
CREATE INDEX agent_metrics_by_time ON abide.agent_metrics (agent_id, metric_type, recorded_at);
CREATE TABLE abide.agent_metrics_default PARTITION OF abide.agent_metrics DEFAULT;

CREATE TABLE abide.agent_errors (
    agent_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    occurred_at timestamptz NOT NULL DEFAULT now(),
    error_type text NOT NULL,
    message text NOT NULL,
    stack_trace text NOT NULL DEFAULT '',
    context jsonb NOT NULL DEFAULT '{}',
    key_id text,
    CONSTRAINT agent_errors_pkey PRIMARY KEY (agent_id, occurred_at, id)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE abide.agent_errors_default PARTITION OF abide.agent_errors DEFAULT;

CREATE TABLE abide.system_events (
    agent_id uuid,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    occurred_at timestamptz NOT NULL DEFAULT now(),
    event_type text NOT NULL,
    message text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (occurred_at);
CREATE INDEX system_events_by_time ON abide.system_events (agent_id, occurred_at);
CREATE TABLE abide.system_events_default PARTITION OF abide.system_events DEFAULT;

CREATE VIEW abide.time_series AS
    SELECT * FROM (VALUES ('agent_metrics', 'recorded_at'), ('agent_errors', 'occurred_at'), ('system_events', 'occurred_at'))
        AS series (table_name, time_column);
COMMENT ON VIEW abide.time_series IS 'The tables partitioned by time, and the column they are partitioned by.';

-- Makes the partitions of this week and the next ones. Rows that came before their partition wait in the default one and
-- are moved. Does nothing while another session does it.
CREATE FUNCTION abide.ensure_partitions(weeks_ahead integer DEFAULT 4) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    series record;
    lower_bound timestamptz;
    partition text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('abide.partitions', 0)) THEN
        RETURN;
    END IF;
    FOR series IN SELECT * FROM abide.time_series LOOP
        FOR week IN 0..weeks_ahead LOOP
            lower_bound := (date_trunc('week', now() AT TIME ZONE 'UTC') + week * interval '1 week') AT TIME ZONE 'UTC';
            partition := series.table_name || to_char(lower_bound AT TIME ZONE 'UTC', '"_"YYYYMMDD');
            CONTINUE WHEN to_regclass(format('abide.%I', partition)) IS NOT NULL;
            EXECUTE format('CREATE TABLE abide.%I (LIKE abide.%I INCLUDING ALL)', partition, series.table_name);
            EXECUTE format('LOCK TABLE abide.%I IN ACCESS EXCLUSIVE MODE', series.table_name || '_default');
            EXECUTE format(
                'WITH moved AS (DELETE FROM abide.%I WHERE %I >= %L AND %I < %L RETURNING *) INSERT INTO abide.%I SELECT * FROM moved',
                series.table_name || '_default', series.time_column, lower_bound,
                series.time_column, lower_bound + interval '7 days', partition);
            EXECUTE format(
                'ALTER TABLE abide.%I ATTACH PARTITION abide.%I FOR VALUES FROM (%L) TO (%L)',
                series.table_name, partition, lower_bound, lower_bound + interval '7 days');
        END LOOP;
    END LOOP;
END
$$;

-- Drops the partitions that hold only rows older than `keep`; returns how many.
CREATE FUNCTION abide.drop_old_partitions(keep interval DEFAULT interval '30 days') RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    series record;
    partition text;
    dropped integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('abide.partitions', 0)) THEN
        RETURN 0;
    END IF;
    FOR series IN SELECT * FROM abide.time_series LOOP
        FOR partition IN
            SELECT c.relname
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = format('abide.%I', series.table_name)::regclass
              AND c.relname ~ ('^' || series.table_name || '_[0-9]{8}$')
              AND to_date(right(c.relname, 8), 'YYYYMMDD') + 7 <= ((now() - keep) AT TIME ZONE 'UTC')::date
        LOOP
            EXECUTE format('DROP TABLE abide.%I', partition);
            dropped := dropped + 1;
        END LOOP;
        EXECUTE format('DELETE FROM abide.%I WHERE %I < $1', series.table_name || '_default', series.time_column) USING now() - keep;
    END LOOP;
    RETURN dropped;
END
$$;

-- Erasing an agent ----------------------------------------------------------------------------------------------------

-- What is gone must not be made again by a process that still lives.
CREATE TABLE abide.erased_agents (
    agent_id uuid NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT erased_agents_pkey PRIMARY KEY (agent_id)
);
COMMENT ON TABLE abide.erased_agents IS 'Agents whose rows were erased for good; no process may register for one of them.';

-- Deletes up to `batch` rows of an agent from every table that has any (audit events stay until their retention is over),
-- and returns true once nothing was left to delete: call it until it does. Running turns are fenced out by the first call,
-- since their processes' leases go. Sessions go last: their trigger then has little left to do.
CREATE FUNCTION abide.erase_agent(agent uuid, batch integer DEFAULT 2000) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    target regclass;
    removed bigint;
    total bigint := 0;
BEGIN
    INSERT INTO abide.erased_agents (agent_id) VALUES (agent) ON CONFLICT DO NOTHING;
    DELETE FROM abide.runtime_instances WHERE agent_id = agent;
    GET DIAGNOSTICS total = ROW_COUNT;
    FOR target IN
        SELECT c.oid::regclass
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'agent_id' AND NOT a.attisdropped
        WHERE c.relnamespace = 'abide'::regnamespace AND c.relkind = 'r' AND c.relname <> 'erased_agents'
            AND NOT EXISTS (
                SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid AND i.inhparent = 'abide.system_events'::regclass)
        ORDER BY c.relname = 'sessions', c.relname
    LOOP
        EXECUTE format('DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s WHERE agent_id = $1 LIMIT $2))', target, target)
            USING agent, batch - total;
        GET DIAGNOSTICS removed = ROW_COUNT;
        total := total + removed;
        IF total >= batch THEN
            RETURN false;
        END IF;
    END LOOP;
    DELETE FROM abide.agents WHERE id = agent;
    GET DIAGNOSTICS removed = ROW_COUNT;
    -- Another look is due when something was deleted: a row that changed meanwhile was passed over.
    RETURN total + removed = 0;
END
$$;

-- For custom code ----------------------------------------------------------------------------------------------------

CREATE FUNCTION abide.record_metric(agent uuid, type text, value double precision, metadata jsonb DEFAULT '{}')
RETURNS void LANGUAGE sql AS $$
    INSERT INTO abide.agent_metrics (agent_id, metric_type, value, metadata) VALUES (agent, type, value, coalesce(metadata, '{}'))
$$;

CREATE FUNCTION abide.record_error(agent uuid, type text, message text, trace text DEFAULT '', context jsonb DEFAULT '{}')
RETURNS void LANGUAGE sql AS $$
    INSERT INTO abide.agent_errors (agent_id, error_type, message, stack_trace, context) VALUES (agent, type, message, coalesce(trace, ''), coalesce(context, '{}'))
$$;

-- Finds an agent by `namespace/name` (the newest one of that name) or by its id.
CREATE FUNCTION abide.find_agent(agent text) RETURNS uuid LANGUAGE plpgsql STABLE AS $$
DECLARE
    found_id uuid;
BEGIN
    SELECT a.id INTO found_id FROM abide.agents a
    WHERE a.id::text = agent OR (a.namespace = split_part(agent, '/', 1) AND a.name = split_part(agent, '/', 2))
    ORDER BY a.created_at DESC LIMIT 1;
    IF found_id IS NULL THEN
        RAISE EXCEPTION 'there is no agent %', quote_literal(agent)
            USING HINT = 'Write namespace/name, or the id from abide.agents.';
    END IF;
    RETURN found_id;
END
$$;

CREATE FUNCTION abide.record_metric(agent text, type text, value double precision, metadata jsonb DEFAULT '{}')
RETURNS void LANGUAGE sql AS $$
    SELECT abide.record_metric(abide.find_agent(agent), type, value, metadata)
$$;

CREATE FUNCTION abide.record_error(agent text, type text, message text, trace text DEFAULT '', context jsonb DEFAULT '{}')
RETURNS void LANGUAGE sql AS $$
    SELECT abide.record_error(abide.find_agent(agent), type, message, trace, context)
$$;

-- For people and dashboards; names and columns are stable --------------------------------------------------------------

CREATE VIEW abide.active_agents WITH (security_invoker = true) AS
    SELECT a.id AS agent_id, a.namespace, a.name, count(*) AS pods, max(h.at) AS last_heartbeat_at
    FROM abide.agents a JOIN abide.agent_heartbeats h ON h.agent_id = a.id
    WHERE h.at > now() - interval '30 seconds'
    GROUP BY a.id;
COMMENT ON VIEW abide.active_agents IS 'Agents with a pod whose heartbeat is at most 30 seconds old.';

CREATE VIEW abide.messages_per_agent WITH (security_invoker = true) AS
    SELECT a.id AS agent_id, a.namespace, a.name, count(s.id) AS sessions,
        coalesce(sum(s.next_seq - 1), 0) AS messages, coalesce(sum(s.next_turn_seq - 1), 0) AS user_messages
    FROM abide.agents a LEFT JOIN abide.sessions s ON s.agent_id = a.id
    GROUP BY a.id;
COMMENT ON VIEW abide.messages_per_agent IS 'Sessions, lines of history and accepted user messages of every agent.';

CREATE VIEW abide.recent_errors WITH (security_invoker = true) AS
    SELECT e.agent_id, a.namespace, a.name, e.error_type, e.message, e.stack_trace, e.context, e.occurred_at
    FROM abide.agent_errors e LEFT JOIN abide.agents a ON a.id = e.agent_id
    WHERE e.occurred_at > now() - interval '24 hours'
    ORDER BY e.occurred_at DESC;
COMMENT ON VIEW abide.recent_errors IS 'Errors of the last 24 hours, newest first.';
