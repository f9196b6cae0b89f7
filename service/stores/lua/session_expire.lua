-- Write down that a session's time is over, once; it shows by the time alone, but who listens wants to be told.
-- KEYS: session. ARGV: now, channel, topic. Returns 1 if it is written down by now.
local r = redis.call('HMGET', KEYS[1], 'state', 'expires', 'expired')
if r[3] then return 1 end
if r[1] ~= 'open' or tonumber(r[2]) > tonumber(ARGV[1]) then return 0 end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 7) == 'intent:' then return 0 end
end
redis.call('HSET', KEYS[1], 'expired', '1')
redis.call('HSET', KEYS[1], string.format('ev:%04d', redis.call('HINCRBY', KEYS[1], 'events', 1)), ARGV[1] .. ':session.expired:')
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
