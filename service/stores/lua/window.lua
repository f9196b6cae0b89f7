-- Count in a fixed window, if there is room. KEYS: counter. ARGV: window in ms, how many, most.
-- Returns {count, ms left}. A count above `most` is a refusal: it changes nothing and is not remembered, so that a flood of
-- refusals takes no memory.
local window, many = tonumber(ARGV[1]), tonumber(ARGV[2])
local count = redis.call('INCRBY', KEYS[1], many)
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('PEXPIRE', KEYS[1], window)
  left = window
end
if count <= tonumber(ARGV[3]) then return {count, left} end
redis.call('DECRBY', KEYS[1], many)
return {count, left}, 'unchanged'
