-- Let a browser into a session by its hosted page. The first one begins it and may come back; another one starts anew.
-- KEYS: session. ARGV: now, hash of the link's secret or '', hash of the presented cookie or '', hash of the cookie that a
-- new browser gets, hash of the new session token, ms to keep an ended session, channel, topic, '1' to begin, tenants.
-- Returns 'invited' (it may begin) | 'opened' | 'resumed' | 'restarted' | 'over' (told to the browser that was in it) |
-- 'ended' | 'linking' | 'refused'.
local now = tonumber(ARGV[1])
local r = redis.call('HMGET', KEYS[1], 'state', 'tenant', 'linksecret', 'browser', 'expires', 'hosted')
local state, tenant, secret, browser, expires, hosted = r[1], r[2], r[3], r[4], r[5], r[6]
local ours = false
for i = 10, #ARGV do ours = ours or ARGV[i] == tenant end
if not state or not ours or not secret or not hosted then return 'refused' end
if browser == ARGV[4] then return 'opened' end -- run twice
local known = browser and browser == ARGV[3]
if not known and secret ~= ARGV[2] then return 'refused' end
local linking, found = false, {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 7) == 'intent:' then linking = true end
  local kind = string.match(name, '^%a+:')
  if kind == 'val:' or kind == 'acct:' or kind == 'ev:' then found[#found + 1] = name end
end
if state == 'linked' or state == 'closed' or (state == 'open' and not linking and tonumber(expires) <= now) then
  return known and 'over' or 'ended'
end
local entry = 'resumed'
if not known then
  if linking then return 'linking' end
  if state ~= 'open' then return 'ended' end
  if ARGV[9] ~= '1' then return 'invited' end
  if browser then
    entry = 'restarted'
    -- What another browser has found is not for this one to see.
    if #found > 0 then redis.call('HDEL', KEYS[1], unpack(found)) end
    redis.call('HSET', KEYS[1], string.format('ev:%04d', redis.call('HINCRBY', KEYS[1], 'events', 1)), ARGV[1] .. ':session.created:')
  else
    entry = 'opened'
    local lifetime = cjson.decode(hosted)['lifetime_ms']
    redis.call('HSET', KEYS[1], 'expires', string.format('%.0f', now + lifetime))
    redis.call('PEXPIRE', KEYS[1], lifetime + tonumber(ARGV[6]))
  end
  redis.call('HSET', KEYS[1], 'browser', ARGV[4])
end
redis.call('HSET', KEYS[1], 'token', ARGV[5])
redis.call('PUBLISH', ARGV[7], ARGV[8])
return entry
