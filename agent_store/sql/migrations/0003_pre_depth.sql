-- Turns with tools, approvals, budgets, memories, feedback, encryption keys.

ALTER TABLE abide.turns
    ADD COLUMN merged_into uuid,
    ADD COLUMN cost_micros bigint,
    ADD COLUMN currency text,
    ADD COLUMN is_alone boolean;
COMMENT ON COLUMN abide.turns.merged_into IS 'The turn that answers this one too (session.whenBusy: Merge); it has the same outcome.';
COMMENT ON COLUMN abide.turns.cost_micros IS 'What its model calls cost, in millionths of the currency; null: no price is known.';
COMMENT ON COLUMN abide.turns.is_alone IS 'It was begun with no other turn beside it, since processes that ran it had ended; if this one ends too, it is to blame.';

ALTER TABLE abide.active_turns ADD COLUMN cancel_requested boolean;
COMMENT ON COLUMN abide.active_turns.cancel_requested IS 'Another process was asked to cancel the turn; its owner looks here.';

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
    tokens_reserved bigint NOT NULL DEFAULT 0,
    micros_used bigint NOT NULL DEFAULT 0,
    micros_reserved bigint NOT NULL DEFAULT 0,
    CONSTRAINT budget_usage_pkey PRIMARY KEY (agent_id, day, scope)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE abide.budget_usage IS 'What was used of each budget, by day: scope is agent, or user: and a user. Money in millionths.';

CREATE TABLE abide.budget_slices (
    agent_id uuid NOT NULL,
    day date NOT NULL,
    scope text NOT NULL,
    instance text NOT NULL,
    epoch bigint NOT NULL,
    tokens bigint NOT NULL,
    micros bigint NOT NULL,
    CONSTRAINT budget_slices_pkey PRIMARY KEY (agent_id, day, scope, instance, epoch)
) WITH (fillfactor = 50);
COMMENT ON TABLE abide.budget_slices IS 'What each process holds of a budget: given back when it ends, or found here when it died.';

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
