-- Let go of jobs that are ours: finished ones for good, others ('release') so that another process takes them over at once.
-- KEYS: leases, holders. ARGV: holder, 'finished' | 'release', channel, topic, jobs ... Others are told of released ones.
for i = 5, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[1] then
    if ARGV[2] == 'finished' then
      redis.call('ZREM', KEYS[1], ARGV[i])
    else
      redis.call('ZADD', KEYS[1], 0, ARGV[i])
    end
    redis.call('HDEL', KEYS[2], ARGV[i])
  end
end
if ARGV[2] == 'release' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
