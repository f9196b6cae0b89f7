-- Uncount a password that was not sent in its session, once; also if its validation is over by now.
-- KEYS: session. ARGV: validation. Returns 1.
if redis.call('HDEL', KEYS[1], 'val:' .. ARGV[1] .. ':account') == 1 then redis.call('HINCRBY', KEYS[1], 'passwords', -1) end
return 1
