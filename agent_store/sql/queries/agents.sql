-- name: find_agent
SELECT id, namespace, name, created_at FROM abide.agents WHERE id = $1

-- name: erase_agent
SELECT abide.erase_agent($1, $2) AS is_done
