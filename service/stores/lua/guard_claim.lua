-- Claim all accounts of a choice, or none (step 3 of `service/link/attempt.py`).
-- KEYS: void mark of this attempt, then one guard per service account.
-- ARGV: attempt, digest of the choice, lease in ms, ms to keep, the attempt that was waited for or '', attempts to send again ...
-- Returns {'voided'} | {'done'} | {'overlap'} | {'held', attempt, ms left} | {'refused', why}
--       | {'unknown', attempts ...}: all unclear ones of the choice, if any is not among those to send again
--       | {'claimed', positions among the accounts, from 0 ...}.
local me, digest, lease, keep, waited = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
if redis.call('EXISTS', KEYS[1]) == 1 then return {'voided'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local resend = {}
for i = 6, #ARGV do resend[ARGV[i]] = true end

local free, done, refused, why = {}, 0, 0, ''
local held, left, overlap
local unknown, seen, unasked = {}, {}, false
for i = 2, #KEYS do
  local r = redis.call('HMGET', KEYS[i], 'cur', 'st', 'until', 'unk', 'done', 'last', 'why', 'digest')
  local cur, unk = r[1], r[4] or ''
  if r[5] then
    done = done + 1
  else
    if cur and cur ~= me and tonumber(r[3]) <= now then
      -- A lapsed 'sent' may have reached the vendor; a lapsed 'claimed' has not.
      if r[2] == 'sent' then
        unk = unk .. cur .. ','
        redis.call('HSET', KEYS[i], 'unk', unk)
      end
      redis.call('HDEL', KEYS[i], 'cur', 'st', 'until', 'digest')
      cur = false
    end
    -- Our own mark can only be met by a claim that was on its way for so long that its repetition got here first.
    if cur and (cur ~= me or r[2] == 'sent') then
      held, left = cur, math.max(left or 0, tonumber(r[3]) - now)
      if r[8] ~= digest then overlap = true end
    else
      for attempt in string.gmatch(unk, '[^,]+') do
        if not seen[attempt] then
          seen[attempt] = true
          unknown[#unknown + 1] = attempt
        end
        if not resend[attempt] then unasked = true end
      end
      if waited ~= '' and r[6] == waited then refused, why = refused + 1, r[7] end
      free[#free + 1] = i
    end
  end
end
if done == #KEYS - 1 then return {'done'} end
if overlap then return {'overlap'} end
if held then return {'held', held, tostring(left)} end
if unasked then return {'unknown', unpack(unknown)} end
if refused == #free then return {'refused', why} end
local answer = {'claimed'}
for _, i in ipairs(free) do
  redis.call('HSET', KEYS[i], 'cur', me, 'st', 'claimed', 'until', now + lease, 'digest', digest)
  redis.call('PEXPIRE', KEYS[i], keep)
  answer[#answer + 1] = tostring(i - 2)
end
return answer
