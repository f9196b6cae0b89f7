-- Mark accounts as being sent, only if this attempt still holds all of them (step 5 of `service/link/attempt.py`); else give them back.
-- KEYS: void mark of this attempt, then one guard per account that was claimed. ARGV: attempt, lease in ms, channel, topic.
-- Returns 'sent' | 'voided' | 'lost'.
local me = ARGV[1]
local verdict, marked = redis.call('EXISTS', KEYS[1]) == 1 and 'voided' or 'sent', false
for i = 2, #KEYS do
  local r = redis.call('HMGET', KEYS[i], 'cur', 'done', 'st')
  if r[1] == me and r[3] == 'sent' then marked = true end
  if verdict == 'sent' and (r[1] ~= me or r[2]) then verdict = 'lost' end
end
-- An attempt marks once, so this is the same command again: what it has marked may be under way.
if marked then return 'sent' end
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
for i = 2, #KEYS do
  if verdict == 'sent' then
    redis.call('HSET', KEYS[i], 'st', 'sent', 'until', till)
  elseif redis.call('HGET', KEYS[i], 'cur') == me then
    redis.call('HDEL', KEYS[i], 'cur', 'st', 'until', 'digest')
  end
end
if verdict ~= 'sent' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return verdict
