-- Take an attempt's result over into its session (step 8 of `service/link/attempt.py`). Running it again changes nothing.
-- KEYS: session. ARGV: now, attempt, 'linked' | 'unknown' | 'open', link, digest, choice, unknown attempts, ms to keep, channel, topic.
-- Returns {state, link}.
local session, result = KEYS[1], ARGV[3]

-- The parts of a list, without those in `others`.
local function split(list, others)
  local skip, parts = {}, {}
  for _, part in ipairs(others or {}) do skip[part] = true end
  for part in string.gmatch(list, '[^,]+') do
    if not skip[part] then parts[#parts + 1] = part end
  end
  return parts
end

local state = redis.call('HGET', session, 'state')
if not state then return {'missing', ''} end
redis.call('HDEL', session, 'intent:' .. ARGV[2])

local function tell(event)
  redis.call('HSET', session, string.format('ev:%04d', redis.call('HINCRBY', session, 'events', 1)), ARGV[1] .. ':' .. event .. ':')
end

if result == 'linked' and state ~= 'linked' and state ~= 'closed' then
  redis.call('HSET', session, 'state', 'linked', 'digest', ARGV[5], 'choice', ARGV[6], 'link', ARGV[4], 'ended', ARGV[1])
  redis.call('HDEL', session, 'unclear')
  redis.call('PEXPIRE', session, ARGV[8])
  tell('link.created')
elseif result == 'unknown' and (state == 'open' or state == 'unknown') then
  -- Results may be settled out of order: none of them forgets what another one has told.
  local unclear = split(ARGV[7])
  for _, attempt in ipairs(split(redis.call('HGET', session, 'unclear') or '', unclear)) do unclear[#unclear + 1] = attempt end
  table.sort(unclear)
  local told = redis.call('HGET', session, 'unclear')
  redis.call('HSET', session, 'state', 'unknown', 'digest', ARGV[5], 'choice', ARGV[6], 'unclear', table.concat(unclear, ','))
  if told ~= table.concat(unclear, ',') then tell('link.unknown') end
elseif result == 'open' and state == 'unknown' then
  -- A late refusal: it was unclear, and is no more.
  local told = split(redis.call('HGET', session, 'unclear') or '')
  local unclear = split(table.concat(told, ','), {ARGV[2]})
  if #unclear > 0 then
    redis.call('HSET', session, 'unclear', table.concat(unclear, ','))
  elseif #told > 0 then
    redis.call('HSET', session, 'state', 'open')
    redis.call('HDEL', session, 'digest', 'choice', 'unclear')
  end
end
redis.call('PUBLISH', ARGV[9], ARGV[10])
return {redis.call('HGET', session, 'state'), redis.call('HGET', session, 'link') or ''}
