-- Record how an attempt ended (step 7 of `service/link/attempt.py`), or that it gave up without sending.
-- Returns, for 'unknown', all unclear attempts of these accounts.
-- KEYS: one guard per account that was claimed. ARGV: attempt, 'linked' | 'refused' | 'unknown' | 'unsent', why, ms to keep, channel, topic.
local me, result = ARGV[1], ARGV[2]
local unclear, seen = {}, {}
for i = 1, #KEYS do
  local r = redis.call('HMGET', KEYS[i], 'cur', 'unk', 'done')
  local mine = r[1] == me
  local unk, listed = '', false
  for attempt in string.gmatch(r[2] or '', '[^,]+') do
    if attempt == me then listed = true else unk = unk .. attempt .. ',' end
  end
  if mine then redis.call('HDEL', KEYS[i], 'cur', 'st', 'until', 'digest') end
  if result == 'linked' then
    -- A confirmation counts whoever holds the account by now.
    redis.call('HSET', KEYS[i], 'done', me)
    redis.call('HDEL', KEYS[i], 'unk')
  elseif result == 'unknown' then
    if not r[3] then
      unk = unk .. me .. ','
      redis.call('HSET', KEYS[i], 'unk', unk)
      for attempt in string.gmatch(unk, '[^,]+') do
        if not seen[attempt] then
          seen[attempt] = true
          unclear[#unclear + 1] = attempt
        end
      end
    end
  else
    if listed then redis.call('HSET', KEYS[i], 'unk', unk) end
    if result == 'refused' and (mine or listed) then redis.call('HSET', KEYS[i], 'last', me, 'why', ARGV[3]) end
  end
  redis.call('PEXPIRE', KEYS[i], ARGV[4])
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return unclear
