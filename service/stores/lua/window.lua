-- Count in a window. KEYS: counter. ARGV: window in ms, how many (below zero gives back), up to which count it begins anew each
-- time, 0 for a fixed one. Returns {count, ms left}.
local many = tonumber(ARGV[2])
if many < 0 and tonumber(redis.call('GET', KEYS[1]) or '0') <= 0 then return {0, tonumber(ARGV[1])} end
local count = redis.call('INCRBY', KEYS[1], many)
local left = redis.call('PTTL', KEYS[1])
if left < 0 or (many > 0 and count <= tonumber(ARGV[3])) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  left = tonumber(ARGV[1])
end
return {count, left}
