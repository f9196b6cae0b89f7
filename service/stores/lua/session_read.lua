-- Read a session and count the read in its window of 60 s, in one round trip.
-- KEYS: session, window. ARGV: window in ms. Returns {count, ms left in the window, field, value, ...}; empty if there is none.
local fields = redis.call('HGETALL', KEYS[1])
if #fields == 0 then return {} end
local count = redis.call('INCR', KEYS[2])
if count == 1 then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
local answer = {tostring(count), tostring(redis.call('PTTL', KEYS[2]))}
for _, part in ipairs(fields) do answer[#answer + 1] = part end
return answer
