-- Replace the session token; the old one dies with this. KEYS: session. ARGV: hash of the new token, channel, topic.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
