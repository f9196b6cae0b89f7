-- How does an attempt stand, as the guard knows it? With 'void', forbid it to send if it has not yet.
-- KEYS: void mark of the attempt, then one guard per service account of its choice. ARGV: attempt, 'void' | '', ms to keep, channel, topic.
-- Returns {'done'} | {'busy'} | {'unknown', attempts ...} | {'refused', why} | {'voided'} | {'unsent'}.
local me = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local done, refused, why = 0, false, ''
local unknown, seen = {}, {}
for i = 2, #KEYS do
  local r = redis.call('HMGET', KEYS[i], 'cur', 'st', 'until', 'unk', 'done', 'last', 'why')
  local unk = r[4] or ''
  if r[5] then done = done + 1 end
  if r[1] == me and r[2] == 'sent' then
    if tonumber(r[3]) > now then return {'busy'} end
    unk = unk .. me .. ','
    redis.call('HSET', KEYS[i], 'unk', unk)
    redis.call('HDEL', KEYS[i], 'cur', 'st', 'until', 'digest')
  end
  for attempt in string.gmatch(unk, '[^,]+') do
    if not seen[attempt] then
      seen[attempt] = true
      unknown[#unknown + 1] = attempt
    end
  end
  if r[6] == me then refused, why = true, r[7] end
end
-- Not if a part of the choice is: this attempt may have been made for another session, and for fewer accounts.
if done == #KEYS - 1 then return {'done'} end
if seen[me] then return {'unknown', unpack(unknown)} end
if refused then return {'refused', why} end
if ARGV[2] ~= 'void' then return {redis.call('EXISTS', KEYS[1]) == 1 and 'voided' or 'unsent'} end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[3])
for i = 2, #KEYS do
  if redis.call('HGET', KEYS[i], 'cur') == me then redis.call('HDEL', KEYS[i], 'cur', 'st', 'until', 'digest') end
end
redis.call('PUBLISH', ARGV[4], ARGV[5])
return {'voided'}
