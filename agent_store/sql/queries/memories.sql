-- Kept once, however often it is told: the same id again gives what is there. Nothing comes back where the owner's memories
-- are at their limit.
-- name: save_memory
WITH known AS (
    SELECT id FROM abide.memories WHERE agent_id = $1 AND id = $2
), kept AS (
    SELECT count(*) AS number FROM (
        SELECT 1 FROM abide.memories WHERE agent_id = $1 AND user_id IS NOT DISTINCT FROM $3 LIMIT $10
    ) counted
)
INSERT INTO abide.memories AS m (agent_id, id, user_id, type, importance, tags, content, embedding_model, embedding)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9 FROM kept WHERE kept.number < $10 OR EXISTS (SELECT FROM known)
ON CONFLICT (agent_id, id) DO UPDATE SET importance = m.importance
RETURNING id, content, type, importance, tags, user_id, created_at, updated_at, recalled_at

-- What the manifest tells, at each start: its words win over what was changed meanwhile.
-- name: seed_memories
INSERT INTO abide.memories AS m (agent_id, id, type, importance, tags, content)
SELECT $1, t.id, t.type, t.importance, string_to_array(t.tags, ','), t.content
FROM unnest($2::uuid[], $3::text[], $4::smallint[], $5::text[], $6::text[]) AS t (id, type, importance, tags, content)
ON CONFLICT (agent_id, id) DO UPDATE
SET type = excluded.type, importance = excluded.importance, tags = excluded.tags, updated_at = now()
WHERE (m.type, m.importance, m.tags) IS DISTINCT FROM (excluded.type, excluded.importance, excluded.tags)

-- name: get_memory
SELECT id, content, type, importance, tags, user_id, created_at, updated_at, recalled_at
FROM abide.memories
WHERE agent_id = $1 AND id = $2 AND (user_id = $3 OR user_id IS NULL)

-- Another content has another meaning: its vector is made anew.
-- name: change_memory
UPDATE abide.memories AS m
SET content = coalesce($5, content), type = coalesce($6, type), importance = coalesce($7, importance),
    tags = coalesce($8, tags), updated_at = now(),
    embedding_model = CASE WHEN $5 IS NULL OR $5 = content THEN embedding_model END,
    embedding = CASE WHEN $5 IS NULL OR $5 = content THEN embedding END
WHERE agent_id = $1 AND id = $2 AND (user_id = $3 OR ($4 AND user_id IS NULL))
RETURNING id, content, type, importance, tags, user_id, created_at, updated_at, recalled_at

-- name: delete_memory
DELETE FROM abide.memories WHERE agent_id = $1 AND id = $2 AND (user_id = $3 OR ($4 AND user_id IS NULL)) RETURNING id

-- name: list_memories
SELECT id, content, type, importance, tags, user_id, created_at, updated_at, recalled_at
FROM abide.memories
WHERE agent_id = $1 AND (user_id = $2 OR user_id IS NULL)
    AND ($3::text IS NULL OR type = $3) AND tags @> $4 AND importance >= $5
    AND ($6::timestamptz IS NULL OR (updated_at, id) < ($6, $7::uuid))
ORDER BY updated_at DESC, id DESC
LIMIT $8

-- Each way of ranking gives its best ones with their place in it; who asks weighs the places against each other. Words
-- count the more, the fewer memories have them; a long word also finds those that begin like it, which stands in for
-- knowing the language's forms. Words that mean nothing alone are left out, unless there are no others: those of the
-- language of which the question has most. Without words and vector all that fit are ranked by importance and recency.
-- name: recall_memories
WITH fitting AS MATERIALIZED (
    SELECT id, words, importance / 10.0
        + 0.5 ^ (extract(epoch FROM now() - greatest(updated_at, recalled_at)) / 86400.0 / 30.0)::float8 AS weight
    FROM abide.memories
    WHERE agent_id = $1 AND (user_id = $2 OR user_id IS NULL)
        AND ($3::text IS NULL OR type = $3) AND tags @> $4 AND importance >= $5::smallint
), written AS MATERIALIZED (
    SELECT lexeme FROM unnest(to_tsvector('simple', $6::text)) LIMIT 100
), empty AS MATERIALIZED (
    SELECT array_agg(w.lexeme) AS lexemes
    FROM written w JOIN pg_catalog.pg_ts_dict d ON d.dictname LIKE '%\_stem' AND ts_lexize(d.oid, w.lexeme) = '{}'
    GROUP BY d.dictname
    ORDER BY count(*) DESC, d.dictname <> 'english_stem', d.dictname
    LIMIT 1
), asked AS MATERIALIZED (
    SELECT lexeme, left(lexeme, greatest(4, length(lexeme) - CASE WHEN length(lexeme) < 8 THEN 1 ELSE 2 END)) AS stem,
        length(lexeme) > 4 AND lexeme !~ '[0-9]' AS is_stem
    FROM written
    WHERE NOT EXISTS (SELECT FROM empty WHERE lexeme = ANY (lexemes))
        OR NOT EXISTS (SELECT lexeme FROM written EXCEPT SELECT unnest(lexemes) FROM empty)
), wanted AS (
    SELECT string_agg(
        '''' || replace(replace(CASE WHEN is_stem THEN stem ELSE lexeme END, '\', '\\'), '''', '''''') || ''''
            || CASE WHEN is_stem THEN ':*' ELSE '' END,
        ' | '
    )::tsquery AS query
    FROM asked
), hits AS (
    SELECT DISTINCT f.id, a.lexeme
    FROM wanted CROSS JOIN fitting f CROSS JOIN LATERAL unnest(f.words) w
    JOIN asked a ON w.lexeme = a.lexeme OR (a.is_stem AND starts_with(w.lexeme, a.stem))
    WHERE f.words @@ wanted.query
), rarity AS (
    SELECT lexeme, ln(1 + ((SELECT count(*) FROM fitting) - count(*) + 0.5) / (count(*) + 0.5)) AS idf
    FROM hits GROUP BY lexeme
), by_words AS (
    SELECT h.id, row_number() OVER (ORDER BY sum(r.idf) DESC, h.id) AS place
    FROM hits h JOIN rarity r USING (lexeme) GROUP BY h.id
    ORDER BY place LIMIT $9
), by_meaning AS (
    SELECT n.memory_id AS id, row_number() OVER (ORDER BY n.distance, n.memory_id) AS place
    FROM abide.nearest_memories($1, $2, $3, $4, $5, $8::text, $7::real[], $9::int) n
), by_weight AS (
    SELECT id, row_number() OVER (ORDER BY weight DESC, id) AS place
    FROM fitting WHERE $6 = '' AND $7::real[] IS NULL
    ORDER BY place LIMIT $9
), best AS (
    SELECT id FROM by_words UNION SELECT id FROM by_meaning UNION SELECT id FROM by_weight
)
SELECT m.id, m.content, m.type, m.importance, m.tags, m.user_id, m.created_at, m.updated_at, m.recalled_at,
    f.weight, w.place AS word_place, n.place AS meaning_place
FROM best
JOIN fitting f USING (id)
JOIN abide.memories m ON m.agent_id = $1 AND m.id = f.id
LEFT JOIN by_words w ON w.id = f.id
LEFT JOIN by_meaning n ON n.id = f.id

-- Once a day is enough to know what is in use.
-- name: touch_memories
UPDATE abide.memories SET recalled_at = now()
WHERE agent_id = $1 AND id = ANY($2) AND (recalled_at IS NULL OR recalled_at < now() - interval '1 day')

-- name: list_unembedded
SELECT id, content FROM abide.memories
WHERE agent_id = $1 AND embedding_model IS DISTINCT FROM $2
ORDER BY updated_at DESC, id DESC
LIMIT $3

-- Only what still says the same gets the vector that was made of it.
-- name: embed_memory
UPDATE abide.memories SET embedding_model = $4, embedding = $5
WHERE agent_id = $1 AND id = $2 AND content = $3
RETURNING id
