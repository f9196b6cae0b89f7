-- Uncount a password that was not sent, once; also if its validation is over by now.
-- KEYS: session. ARGV: validation. Returns what its account is counted by, '' if there is none (any more).
local field = 'val:' .. ARGV[1] .. ':account'
local account = redis.call('HGET', KEYS[1], field)
if not account then return '' end
redis.call('HDEL', KEYS[1], field)
redis.call('HINCRBY', KEYS[1], 'passwords', -1)
return account
