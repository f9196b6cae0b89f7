-- Read a session and count the read in its window of 60 s, in one round trip; a read with another token is not counted.
-- KEYS: session, window. ARGV: window in ms, hash of the token, '' where none is presented. Returns {count, ms left in the window, the
-- fields as JSON}, since one value costs its reader less than sixty; empty if there is no session.
local fields = redis.call('HGETALL', KEYS[1])
if #fields == 0 then return {} end
local count = 0
if ARGV[2] == '' or redis.call('HGET', KEYS[1], 'token') == ARGV[2] then
  count = redis.call('INCR', KEYS[2])
  if count == 1 then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
end
return {count, redis.call('PTTL', KEYS[2]), cjson.encode(fields)}
