-- Give a lease back, if it is still ours, and tell those who wait for what it protected.
-- KEYS: lock. ARGV: holder, channel, topic.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
