-- Close a session whose open link attempts have all been voided in the guard.
-- KEYS: session. ARGV: now, ms to keep it, channel, topic, browser, voided attempts ... Returns what it is by then, or 'intents'.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'missing' end
if (redis.call('HGET', KEYS[1], 'browser') or '') ~= ARGV[5] then return 'missing' end
if state ~= 'open' then return state end
if redis.call('HEXISTS', KEYS[1], 'expired') == 1 or tonumber(redis.call('HGET', KEYS[1], 'expires')) <= tonumber(ARGV[1]) then return 'expired' end
local voided = {}
for i = 6, #ARGV do voided['intent:' .. ARGV[i]] = true end
local intents = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 7) == 'intent:' then
    if not voided[name] then return 'intents' end
    intents[#intents + 1] = name
  end
end
if #intents > 0 then redis.call('HDEL', KEYS[1], unpack(intents)) end
redis.call('HSET', KEYS[1], 'state', 'closed', 'ended', ARGV[1])
redis.call('HSET', KEYS[1], string.format('ev:%04d', redis.call('HINCRBY', KEYS[1], 'events', 1)), ARGV[1] .. ':session.closed:')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 'closed'
