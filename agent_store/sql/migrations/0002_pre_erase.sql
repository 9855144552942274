-- Erasing an agent: what is gone must not be made again by a process that still lives.

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
