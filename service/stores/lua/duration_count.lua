-- Count a finished job; when too many are counted, halve all buckets, which forgets old jobs and anything unreadable.
-- KEYS: durations of a provider. ARGV: bucket, most counted, TTL in ms. Returns how many are counted now.
local function count(text)
  return text and #text <= 9 and tonumber(string.match(text, '^%d+$')) or 0
end
redis.call('HSET', KEYS[1], ARGV[1], count(redis.call('HGET', KEYS[1], ARGV[1])) + 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local fields, total, kept = redis.call('HGETALL', KEYS[1]), 0, 0
for i = 2, #fields, 2 do total = total + count(fields[i]) end
if total <= tonumber(ARGV[2]) then return total end
for i = 1, #fields, 2 do
  local half = math.floor(count(fields[i + 1]) / 2)
  kept = kept + half
  if half > 0 then redis.call('HSET', KEYS[1], fields[i], half) else redis.call('HDEL', KEYS[1], fields[i]) end
end
return kept
