-- Hold jobs, and take over those whose holder has stopped renewing.
-- KEYS: leases (sorted by end), holders. ARGV: holder, lease in ms, most to take over, ms to keep, number of new ones, of sent ones, jobs ... (new, sent, others)
-- Returns {number of lost ones, lost ..., taken ...}.
local me, lease, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local fresh, sent = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost, taken = {}, {}
for i = 7, #ARGV do
  local holder = redis.call('HGET', KEYS[2], ARGV[i])
  -- Of a job that is neither held nor listed Redis may have lost what it knew, and nobody else would ever poll it. One
  -- that is still to be sent may as well have been given up by another process, and must not be sent then.
  local forgotten = i < 7 + fresh + sent and not (holder or redis.call('ZSCORE', KEYS[1], ARGV[i]))
  if i < 7 + fresh or holder == me or forgotten then
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
