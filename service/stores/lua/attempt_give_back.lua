-- Stop counting an attempt that was not made, also if its count is still on its way.
-- KEYS: attempts that count, mark that this attempt was given back. ARGV: attempt, ms to keep the mark. Returns 1.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], '1', 'PX', ARGV[2])
return 1
