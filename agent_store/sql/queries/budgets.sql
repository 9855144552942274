-- Rows are accounted for in the order they are given, which is the same in every process: no two wait for each other.
-- name: account_budgets
SELECT i.day, a.*, ((i.day + 1)::timestamp AT TIME ZONE $4) AS resets_at,
    extract(epoch FROM ((i.day + 1)::timestamp AT TIME ZONE $4) - clock_timestamp())::float8 AS seconds_left
FROM (
    SELECT n, coalesce(day, (clock_timestamp() AT TIME ZONE $4)::date) AS day, scope, serial, spent_tokens, spent_micros,
        slice_tokens, slice_micros, want_tokens, want_micros, limit_tokens, limit_micros
    FROM unnest($5::date[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
            $13::bigint[], $14::bigint[], $15::bigint[])
        WITH ORDINALITY AS item (day, scope, serial, spent_tokens, spent_micros, slice_tokens, slice_micros,
            want_tokens, want_micros, limit_tokens, limit_micros, n)
) i CROSS JOIN LATERAL abide.account_budget($1, $2, $3, i.day, i.scope, i.serial, i.spent_tokens, i.spent_micros,
    i.slice_tokens, i.slice_micros, i.want_tokens, i.want_micros, i.limit_tokens, i.limit_micros) a
ORDER BY i.n

-- name: read_budget
SELECT d.day, coalesce(u.tokens_used, 0) AS tokens_used, coalesce(u.micros_used, 0) AS micros_used,
    ((d.day + 1)::timestamp AT TIME ZONE $3) AS resets_at,
    extract(epoch FROM ((d.day + 1)::timestamp AT TIME ZONE $3) - clock_timestamp())::float8 AS seconds_left
FROM (SELECT (clock_timestamp() AT TIME ZONE $3)::date AS day) d
LEFT JOIN abide.budget_usage u ON u.agent_id = $1 AND u.day = d.day AND u.scope = $2

-- name: forget_budgets
WITH slices AS (
    DELETE FROM abide.budget_slices WHERE agent_id = $1 AND day < (clock_timestamp() AT TIME ZONE $2)::date - 1
)
DELETE FROM abide.budget_usage WHERE agent_id = $1 AND day < (clock_timestamp() AT TIME ZONE $2)::date - $3::int
