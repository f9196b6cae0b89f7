-- Change a validation that is still pending; a finished one never changes again.
-- KEYS: session. ARGV: validation, channel, topic, then field, value, ... Returns 1 if it changed, 0 if it was not pending.
if redis.call('HGET', KEYS[1], 'val:' .. ARGV[1] .. ':state') ~= 'pending' then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
