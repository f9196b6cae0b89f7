-- Change a validation that is still pending; a finished one never changes again, and what stands there already is no change.
-- A session that is over has told its last event: who comes later is told that one, and no canceled validation.
-- KEYS: session. ARGV: validation, channel, topic, now, event or '', then field, value, ... Returns 1, or 0 if it was not pending.
if redis.call('HGET', KEYS[1], 'val:' .. ARGV[1] .. ':state') ~= 'pending' then return 0 end
local changed = false
for i = 6, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) ~= ARGV[i + 1] then changed = true end
end
if not changed then return 1 end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
local r = redis.call('HMGET', KEYS[1], 'state', 'expired')
if ARGV[5] ~= '' and r[1] ~= 'closed' and r[1] ~= 'linked' and not r[2] then
  redis.call('HSET', KEYS[1], string.format('ev:%04d', redis.call('HINCRBY', KEYS[1], 'events', 1)), ARGV[4] .. ':' .. ARGV[5] .. ':' .. ARGV[1])
end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
