-- Take a lease, or find that it is already ours: a lost reply must not look like somebody else's lock.
-- KEYS: lock. ARGV: holder, lease in ms. Returns 1 if ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
