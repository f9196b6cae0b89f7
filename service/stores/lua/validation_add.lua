-- Write down a validation before anything is sent, if the session may have one more.
-- KEYS: session. ARGV: now, validation, provider, sign-in kind, deadline, most pending, most by password, most in all,
-- ms after its deadline from which a pending one counts as given up, channel, topic, what a password's account is counted
-- by, how many more passwords that account may see, browser.
-- Returns {'added'}, or why not: {'missing'}, {state}, {'unknown', unclear link attempts}, {'expired'}, {'linking'},
-- {'pending', validation}, {'spent'} (most in all), {'attempts'} (most by password), {'crowded'} (most pending).
local now, id, provider, kind = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local raw = redis.call('HGETALL', KEYS[1])
if #raw == 0 then return {'missing'} end
local session = {}
for i = 1, #raw, 2 do session[raw[i]] = raw[i + 1] end
local prefix = 'val:' .. id .. ':'
if session[prefix .. 'state'] then return {'added'} end
if (session['browser'] or '') ~= ARGV[14] then return {'missing'} end
if session['state'] ~= 'open' then return {session['state'], session['unclear'] or ''} end
if session['expired'] or tonumber(session['expires']) <= now then return {'expired'} end
local pending, passwords = 0, tonumber(session['passwords'] or '0')
local total = tonumber(session['validations'] or '0')
for name, value in pairs(session) do
  if string.sub(name, 1, 7) == 'intent:' then return {'linking'} end
  local other = string.match(name, '^val:(.+):state$')
  if other then
    local deadline = tonumber(session['val:' .. other .. ':deadline'] or '0')
    if value == 'pending' and deadline + tonumber(ARGV[9]) > now then
      pending = pending + 1
      if session['val:' .. other .. ':provider'] == provider then return {'pending', other} end
    end
  end
end
if total >= tonumber(ARGV[8]) then return {'spent'} end
if kind == 'password' and passwords >= tonumber(ARGV[7]) then return {'attempts'} end
if pending >= tonumber(ARGV[6]) then return {'crowded'} end
if kind == 'password' then
  local left = tonumber(ARGV[7]) - redis.call('HINCRBY', KEYS[1], 'passwords', 1)
  redis.call('HSET', KEYS[1], prefix .. 'account', ARGV[12], prefix .. 'left', math.min(left, tonumber(ARGV[13])))
end
redis.call('HINCRBY', KEYS[1], 'validations', 1)
redis.call('HSET', KEYS[1], prefix .. 'state', 'pending', prefix .. 'provider', provider, prefix .. 'kind', kind,
  prefix .. 'created', ARGV[1], prefix .. 'deadline', ARGV[5])
redis.call('HSET', KEYS[1], string.format('ev:%04d', redis.call('HINCRBY', KEYS[1], 'events', 1)), ARGV[1] .. ':validation.pending:' .. id)
redis.call('PUBLISH', ARGV[10], ARGV[11])
return {'added'}
