-- Write a string value and its expiry together. KEYS: value. ARGV: text, ms to keep. Returns 1.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
