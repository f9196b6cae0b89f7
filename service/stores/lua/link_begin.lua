-- Write down the intent to link before anything else happens (step 1 of `service/link/attempt.py`).
-- KEYS: session. ARGV: now, attempt, intent, digest of the choice, most intents, idempotency field or '', its fingerprint,
-- most idempotency fields, browser.
-- Returns 'begun', or why not: 'missing', 'reused', 'closed', 'expired', 'linked' (this very choice), 'settled' (another one is
-- linked), 'unknown' (what became of another one is), 'other' (another one is under way), 'keys' (too many idempotency fields).
local now, attempt, digest = tonumber(ARGV[1]), ARGV[2], ARGV[4]
local state = redis.call('HGET', KEYS[1], 'state')
if not state or (redis.call('HGET', KEYS[1], 'browser') or '') ~= ARGV[9] then return 'missing' end
if ARGV[6] ~= '' then
  local known = redis.call('HGET', KEYS[1], ARGV[6])
  if known and known ~= ARGV[7] then return 'reused' end
end
if state == 'closed' then return 'closed' end
local chosen = redis.call('HGET', KEYS[1], 'digest')
if state == 'linked' then return chosen == digest and 'linked' or 'settled' end
if redis.call('HEXISTS', KEYS[1], 'expired') == 1 or tonumber(redis.call('HGET', KEYS[1], 'expires')) <= now then return 'expired' end
local count, keys, named = 0, 0, false
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 7) == 'intent:' and name ~= 'intent:' .. attempt then
    count = count + 1
    local other = string.match(redis.call('HGET', KEYS[1], name), '^%d+:(%x+):')
    if other ~= digest or count >= tonumber(ARGV[5]) then return 'other' end
  elseif string.sub(name, 1, 5) == 'idem:' then
    keys = keys + 1
    if name == ARGV[6] then named = true end
  end
end
if state == 'unknown' and chosen ~= digest then return 'unknown' end
if ARGV[6] ~= '' and not named and keys >= tonumber(ARGV[8]) then return 'keys' end
redis.call('HSET', KEYS[1], 'intent:' .. attempt, ARGV[3])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], ARGV[6], ARGV[7]) end
return 'begun'
