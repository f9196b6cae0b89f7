-- Count an attempt, if there is room for it.
-- KEYS: attempts that count (sorted by their order), mark that this attempt was given back. ARGV: attempt, window in ms, most, '1' if the window
-- begins anew with each that is counted. Returns {how many count with it, ms left}; more than `most` if it is refused.
local window, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local count, left = redis.call('ZCARD', KEYS[1]), redis.call('PTTL', KEYS[1])
if left < 0 then left = window end
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return {count, left} end
-- An attempt that was given back before its count arrived was made by nobody.
if count >= most or redis.call('EXISTS', KEYS[2]) == 1 then return {math.max(count, most) + 1, left} end
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
redis.call('ZADD', KEYS[1], (tonumber(last) or 0) + 1, ARGV[1])
if count == 0 or ARGV[4] == '1' then
  redis.call('PEXPIRE', KEYS[1], window)
  left = window
end
return {count + 1, left}
