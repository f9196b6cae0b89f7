-- Compare-and-delete: only the token that was refused, never the newer one that another replica has just stored.
-- KEYS: token. ARGV: version.
if redis.call('HGET', KEYS[1], 'version') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
