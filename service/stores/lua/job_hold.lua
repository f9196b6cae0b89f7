-- Hold jobs, and take over those whose holder has stopped renewing.
-- KEYS: leases (sorted by end), holders. ARGV: holder, lease in ms, most to take over, ms to keep, number of new ones, jobs ... (new ones first)
-- Returns {number of lost ones, lost ..., taken ...}.
local me, lease, most, fresh = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost, taken = {}, {}
for i = 6, #ARGV do
  local holder = redis.call('HGET', KEYS[2], ARGV[i])
  -- Redis may have lost what it knew of a job, and then nobody else would ever take it over; one that was released is still listed.
  if i < 6 + fresh or holder == me or not (holder or redis.call('ZSCORE', KEYS[1], ARGV[i])) then
    redis.call('ZADD', KEYS[1], now + lease, ARGV[i])
    redis.call('HSET', KEYS[2], ARGV[i], me)
  else
    lost[#lost + 1] = ARGV[i]
  end
end
if most > 0 then
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most)) do
    redis.call('ZADD', KEYS[1], now + lease, job)
    redis.call('HSET', KEYS[2], job, me)
    taken[#taken + 1] = job
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local answer = {tostring(#lost)}
for _, job in ipairs(lost) do answer[#answer + 1] = job end
for _, job in ipairs(taken) do answer[#answer + 1] = job end
return answer
